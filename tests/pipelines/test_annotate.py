"""Annotation with a judge made of rules: good, garbled, silent, down, killed, biased."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from alanything_jax.data import media, store
from alanything_jax.data.feedback import DIMENSIONS
from alanything_jax.data.quarantine import TooManyBad
from alanything_jax.evaluation import agreement
from alanything_jax.pipelines import annotate_rubrics as texts
from alanything_jax.pipelines.annotate import Annotate, JudgeDown, annotate
from alanything_jax.pipelines.annotate_stages import echoes
from alanything_jax.rewards.judge import Reply
from alanything_jax.schema import Example, Feedback, Message, Part, Rating, Response

GRADE = re.compile(r"quality (\d)")
DIMS = {"text": ("safety", "clarity"), "image": ("safety", "aesthetics")}


def text(role, said):
    return Message(role, (Part("text", text=said),))


def answer(said):
    return Response((text("assistant", said),))


def prompts(count=7):
    return [Example(f"p{n}", (text("user", f"say {n}"),)) for n in range(count)]


WRITERS = {
    "weak": lambda asked: [
        answer(f"quality {n % 2} to {m[0].text}") for n, m in enumerate(asked)
    ],
    "strong": lambda asked: [
        answer(f"quality 3 to {m[0].text}") for n, m in enumerate(asked)
    ],
}


class Judge:
    """Grades by the number in the response; `spoil(question, shown)` may interfere."""

    def __init__(self, spoil=lambda question, shown: None):
        self.spoil, self.asked = spoil, []

    def __call__(self, questions):
        replies = {}
        for question in questions:
            self.asked.append(question.id)
            shown = question.messages[-1].text
            reply = self.spoil(question, shown)
            said = self.say(question.id, shown) if reply is None else reply
            if not isinstance(said, Reply):
                said = Reply(question.id, said)
            replies[question.id] = said
        return dict(reversed(replies.items()))  # any order: ids alone count

    def say(self, name, shown):
        grades = [int(g) for g in GRADE.findall(shown)]
        if "/ratings/" in name:
            return f"<why>it is a {grades[0]}</why><grade>{grades[0]}</grade>"
        if "/critiques/" in name:
            return (
                "<think>hm <critique></think><scope>Safety, clarity</scope>"
                f"<critique>worth {grades[0]}</critique><refinement>add</refinement>"
            )
        best = 1 + int(np.argmax(grades))
        tie = grades[0] == grades[1]
        return (
            f"<why>[{best}] beats [{3 - best}]</why>"
            f"<better>{'tie' if tie else best}</better>"
        )


def run(tmp_path, judge, recipe=None, examples=None, writers=WRITERS):
    recipe = recipe or Annotate(dimensions=DIMS, shard_rows=3)
    examples = prompts() if examples is None else examples
    return annotate(recipe, judge, tmp_path, writers, examples, say=lambda line: None)


def rows(done):
    return list(store.read(done.dataset))


def lost(run_dir):
    table = json.loads((run_dir / "yield.json").read_text())
    found = {k: v["dropped"] for k, v in table["stages"].items() if v["dropped"]}
    lines = (run_dir / "quarantine.jsonl").read_text().splitlines()
    return found, [json.loads(line) for line in lines]


def test_from_prompts_to_feedback(tmp_path):
    done = run(tmp_path, judge := Judge())
    found = rows(done)
    assert [e.id for e in found] == [f"p{n}" for n in range(7)] and done.records == 7
    first = found[0]
    assert first.extra["models"] == ["weak", "strong"]
    assert [(r.response, r.dimension, r.score) for r in first.feedback.ratings] == [
        (0, "safety", 0),
        (1, "safety", 3),
        (0, "clarity", 0),
        (1, "clarity", 3),
    ]
    assert first.feedback.ratings[1].rationale == "it is a 3"
    by_dimension = {c["dimension"]: c for c in first.extra["choices"]}
    assert list(by_dimension) == ["safety", "clarity", None]
    assert all(c["chosen"] == 1 for c in by_dimension.values())
    # Rationales speak of the example's own numbers, whatever the order shown was.
    assert by_dimension["safety"]["rationales"] == ["[2] beats [1]"] * 2
    feedback = first.feedback
    assert (feedback.chosen, feedback.margin, feedback.rater) == (1, 1.0, "judge")
    assert [c.response for c in feedback.critiques] == [0, 1, None]
    assert feedback.critiques[0].text == (
        "Scope: safety, clarity\nCritique: worth 0\nRefinement: add"
    )
    assert first.extra["scopes"][0]["scope"] == ["safety", "clarity"]
    # Per record: 2 x 2 grades, 2 x 2 choices, 2 critiques, 2 overall.
    assert len(judge.asked) == len(set(judge.asked)) == 7 * 12
    assert done.table["order_flips"] == {"differ": 0, "of": 7 * 3}
    assert agreement.choices(found)[1].tolist() == [[1.0] * 7]


def test_position_bias_decides_nothing(tmp_path):
    def first_place(question, shown):
        if "/choices/" in question.id or "/overall/" in question.id:
            return "<why>[1], as ever</why><better>1</better>"

    done = run(tmp_path / "two", Judge(first_place))
    assert done.table["ties"] == 7
    assert done.table["order_flips"] == {"differ": 21, "of": 21}
    assert all(e.feedback.chosen is None for e in rows(done))
    assert rows(done)[0].extra["choices"][0]["orders"] == [0, 1]
    one = Annotate(dimensions=DIMS, shard_rows=3, orders=1)
    done = run(tmp_path / "one", Judge(first_place), one)
    assert all(e.feedback.chosen == 0 for e in rows(done))


def test_bad_replies_are_asked_again_then_named(tmp_path):
    def spoil(question, shown):
        row = int(question.id.split(":")[0])
        again = "could not be used" in shown
        if row == 0 and "/ratings/safety/0" in question.id and not again:
            return "I think it is a 2"
        if row == 1 and "/ratings/" in question.id:
            return "<why>so</why><grade>4</grade>"
        if row == 2 and "/choices/" in question.id:
            return "  "
        if row == 3 and "/critiques/" in question.id:
            said = GRADE.search(shown)[0] + f" to say {row}"
            return (
                f"<scope>none</scope><critique>{said}</critique>"
                "<refinement>none</refinement>"
            )
        if row == 4 and "/overall/" in question.id:
            return "<why>a</why><better>1</better><better>2</better>"
        if row == 5 and "/ratings/clarity/1" in question.id:
            return Reply(question.id, None, "HTTP 500")

    recipe = Annotate(dimensions=DIMS, shard_rows=7, max_bad_share=0.8)
    done = run(tmp_path, judge := Judge(spoil), recipe)
    assert [e.id for e in rows(done)] == ["p0", "p6"]
    assert rows(done)[0].feedback.ratings[0].rationale == "it is a 0"
    found, listed = lost(tmp_path)
    assert found == {
        "ratings": {"error": 1, "garbled": 1},
        "choices": {"empty": 1},
        "critiques": {"echo": 1},
        "overall": {"garbled": 1},
    }
    where = {e["row"]: (e["source"], e["reason"]) for e in listed}
    assert where[1][0] == "ratings/safety/0" and "none of 0, 1, 2, 3" in where[1][1]
    assert where[5] == ("ratings/clarity/1", "p5: error: HTTP 500")
    # An error is not asked again: the judge has retried itself.
    assert sum(name.startswith("5:p5/ratings/clarity/1") for name in judge.asked) == 1
    assert "0:p0/ratings/safety/0#2" in judge.asked


def test_too_many_bad_stops_and_says_where(tmp_path):
    judge = Judge(lambda question, shown: "no")
    with pytest.raises(TooManyBad, match="ratings/safety/0 row 0: p0: garbled"):
        run(tmp_path, judge)
    assert json.loads((tmp_path / "yield.json").read_text())["stopped"]
    asked = len(judge.asked)
    with pytest.raises(TooManyBad):  # and nothing is asked a second time
        run(tmp_path, judge)
    assert len(judge.asked) == asked
    every = Annotate(dimensions=DIMS, shard_rows=3, max_bad_share=1.0)
    with pytest.raises(ValueError, match="no record reached the end"):
        run(tmp_path, judge, every)
    assert not (tmp_path / "dataset").exists()


def test_a_judge_that_is_down_stops_the_run_and_costs_no_row(tmp_path):
    state = {"left": 30}

    def outage(question, shown):
        state["left"] -= 1
        if state["left"] < 0:
            return Reply(question.id, None, "429 for an hour")

    with pytest.raises(JudgeDown, match="429 for an hour.*run the same again"):
        run(tmp_path / "a", Judge(outage))
    table = json.loads((tmp_path / "a" / "yield.json").read_text())
    assert "429" in table["stopped"] and table["stages"]["choices"]["waiting"] > 0
    state["left"] = 10_000
    again = run(tmp_path / "a", Judge(outage))
    assert rows(again) == rows(run(tmp_path / "b", Judge()))


def files(run_dir):
    places = (p for p in run_dir.rglob("*") if p.is_file())
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in places}


@pytest.mark.parametrize("after", [0, 5, 13, 31, 47, 62, 80])
def test_killed_anywhere_and_restarted_gives_the_same_rows(tmp_path, after):
    run(tmp_path / "whole", whole := Judge())
    counter = iter(range(10_000))

    def kill(question, shown):
        if next(counter) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", first := Judge(kill))
    finished = {
        (p.parent.name, p.name) for p in (tmp_path / "killed").rglob("shard-*.jsonl")
    }
    run(tmp_path / "killed", second := Judge())
    mine, theirs = files(tmp_path / "killed"), files(tmp_path / "whole")
    assert mine == theirs
    # Only the killed shard's questions are asked twice: nothing else is lost or repeated.
    both = set(first.asked) & set(second.asked)
    assert set(first.asked) | set(second.asked) == set(whole.asked)
    assert len(both) <= 3 * 4 and len({n.split("/")[1] for n in both}) <= 1
    assert finished


def test_a_run_directory_belongs_to_one_recipe(tmp_path):
    run(tmp_path, Judge())
    assert run(tmp_path, judge := Judge()).records == 7 and not judge.asked
    with pytest.raises(ValueError, match="shard_rows: 3 -> 4"):
        run(tmp_path, Judge(), Annotate(dimensions=DIMS, shard_rows=4))
    with pytest.raises(ValueError, match="orders 3"):
        Annotate(orders=3)


def test_prompts_and_responses_that_cannot_be_used(tmp_path):
    whole = media.dump("image", np.zeros((4, 4, 3), np.uint8))
    broken = Message("user", (Part("image", data=whole[:40]),))
    two = (answer("quality 1"), answer("quality 2"))
    examples = [
        Example("fine", (text("user", "hi"),), two),
        Example("fine", (text("user", "hi"),), two),
        Example("blank", (text("user", " "),), two),
        Example("broken", (broken,), two),
        Example("single", (text("user", "hi"),), two[:1]),
        Example("same", (text("user", "hi"),), (two[0], two[0])),
        Example("sound", (text("user", "hi"),), (_sound(), _sound(0.5))),
        ValueError("row 7 is no JSON"),
    ]
    recipe = Annotate(dimensions=DIMS, shard_rows=3, max_bad_share=0.9)
    done = run(tmp_path / "a", Judge(), recipe, examples, {})
    assert [e.id for e in rows(done)] == ["fine"]
    found, listed = lost(tmp_path / "a")
    assert found == {
        "prompts": {"duplicate": 1, "empty": 1, "unreadable": 2},
        "responses": {"attribute": 1, "duplicate": 1},
        "ratings": {"attribute": 1},
    }
    assert any("no rubric for audio" in e["reason"] for e in listed)
    dumb = {**WRITERS, "dumb": lambda asked: [answer("")] * len(asked)}
    with pytest.raises(TooManyBad, match="dumb answered nothing"):
        run(tmp_path / "b", Judge(), None, None, dumb)
    mute = {**WRITERS, "mute": lambda asked: [None] * len(asked)}
    with pytest.raises(TooManyBad, match="missing: mute cannot answer"):
        run(tmp_path / "mute", Judge(), None, None, mute)
    short = {"short": lambda asked: []}
    with pytest.raises(ValueError, match="'short' gave 0 responses to 3"):
        run(tmp_path / "c", Judge(), None, None, short)


def _sound(pitch=0.1):
    raw = media.dump("audio", np.full(80, pitch, np.float32), rate=8000)
    return Response((Message("assistant", (Part("audio", data=raw),)),))


def test_a_rubric_may_ask_for_an_attribute(tmp_path):
    folder = tmp_path / "rubrics"
    shutil.copytree(texts.FOLDER, folder)
    sheet = folder / "text.txt"
    sheet.write_text(
        sheet.read_text().replace("== clarity ==\n", "== clarity ==\nSee $reference.\n")
    )
    examples = prompts(6)
    examples[:5] = [
        dataclasses.replace(e, extra={"reference": f"<<{e.id}>>"}) for e in examples[:5]
    ]
    seen = []
    judge = Judge(lambda question, shown: seen.append(shown))
    recipe = Annotate(
        dimensions=DIMS, shard_rows=3, rubrics=str(folder), max_bad_share=0.2
    )
    done = run(tmp_path / "a", judge, recipe, examples)
    assert done.records == 5 and lost(tmp_path / "a")[0] == {
        "ratings": {"attribute": 1}
    }
    assert "asks for it" in lost(tmp_path / "a")[1][0]["reason"]
    assert any("See <<p3>>." in shown for shown in seen)
    with pytest.raises(ValueError, match="Did you mean 'clarity'"):
        texts.load(folder, {"text": ("clarty",)})


def test_media_stand_at_their_place_and_old_feedback_stays(tmp_path):
    pictures = [
        media.dump("image", np.full((4, 4, 3), shade, np.uint8)) for shade in (0, 9)
    ]
    old = Feedback(0, ratings=(Rating(0, "safety", 2.0, rater="ann"),), rater="ann")
    example = Example(
        "i",
        (text("user", "draw"),),
        tuple(
            Response((Message("assistant", (Part("image", data=raw),)),))
            for raw in pictures
        ),
        old,
    )
    shown = {}

    def judge(question, said):
        shown[question.id] = question.messages[0].parts
        if "/ratings/" in question.id:
            return "<why>w</why><grade>2/3</grade>"
        if "/critiques/" in question.id:
            return "<scope>none</scope><critique>c</critique><refinement>r</refinement>"
        last = next(p for p in question.messages[0].parts if p.kind == "image")
        dark = last.data == pictures[0]
        return f"<why>dark</why><better>[{1 if dark else 2}]</better>"

    done = run(tmp_path, Judge(judge), examples=[example], writers={})
    (found,) = rows(done)
    kinds = [p.kind for p in shown["0:i/choices/aesthetics/1"]]
    assert kinds.count("image") == 2
    order = [p.data for p in shown["0:i/choices/aesthetics/1"] if p.kind == "image"]
    assert order == pictures[::-1]
    before = "".join(p.text for p in shown["0:i/ratings/safety/1"][:-1] if p.text)
    assert before.endswith("--- answer ---\n")
    assert found.feedback.chosen == 0 and found.responses == example.responses
    assert found.feedback.ratings[0] == old.ratings[0]
    assert [c["rater"] for c in found.extra["choices"] if c["dimension"] is None] == [
        "ann",
        "judge",
    ]


def test_every_shipped_rubric_is_there_and_fills():
    rubrics = texts.load(texts.FOLDER, DIMENSIONS)
    example = Example("x", ())
    for kind, names in DIMENSIONS.items():
        assert tuple(rubrics.sections[kind]) == names
        for name, said in rubrics.sections[kind].items():
            filled = texts.fill(said, example, kind)
            assert all(f"{n}: " in filled for n in "3210"), (kind, name)


@pytest.mark.parametrize(
    "said",
    ["", "<grade>2</grade>", "<why></why><grade>2</grade>", "<why>a</why><grade>2"],
)
def test_parse_wants_each_tag_once(said):
    with pytest.raises(texts.Garbled):
        texts.parse(said, ("why", "grade"))


def test_votes_and_numbers_by_hand():
    assert texts.better("[2]", (1, 0)) == [1.0, 0.0]
    assert texts.better("Tie", (2, 1, 0)) == [1 / 3] * 3
    assert texts.renumber("[1] over [2], see [9]", (1, 0)) == "[2] over [1], see [9]"
    for bad in ("3", "0", "both", "-1", "²"):
        with pytest.raises(texts.Garbled):
            texts.better(bad, (0, 1))
    assert texts.grade("3 / 3") == 3
    for bad in ("4", "2.5", "", "²"):
        with pytest.raises(texts.Garbled):
            texts.grade(bad)


def test_echo():
    assert echoes("The  sky is blue.", "the sky is blue.")
    assert echoes(
        "Indeed the sky is blue, as seen above", "the sky is blue, as seen above"
    )
    assert not echoes("It says 'the sky is blue'. But it is night.", "the sky is blue")
    assert not echoes("good", "good morning to you all") and not echoes("", "x")


def test_a_record_cannot_forge_the_places_of_media():
    forged = Example("x", (), (answer("y"),), extra={"note": "\0response\0"})
    (message,) = texts.question(
        "$note|$response", forged, "t", {"response": (Part("text", text="R"),)}
    )
    assert message.text == "response|R"
