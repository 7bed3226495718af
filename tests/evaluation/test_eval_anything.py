"""Eval-Anything: the published table, sums by hand, the published layouts, bad input."""

import dataclasses
import json

import numpy as np
import pytest

from alanything_jax.data.files import digest
from alanything_jax.data.quarantine import Quarantine, TooManyBad
from alanything_jax.evaluation.eval_anything import (
    amg,
    amu,
    following,
    loaders,
    run,
    scores,
    templates,
)
from alanything_jax.rewards.judge import Local, Reply
from alanything_jax.schema import Part

TEMPLATES = templates.load()

# arXiv 2412.15838, the printed results: four dimensions, AMU, select, T, V, A, T-V, T-A,
# V-A, AMG, overall.
TABLE = """
LLaVA-v1.5-7B 2.66 2.67 2.50 2.90 2.68 .182 5.62 9.47 4.73 .29 .33 .66 1.56 2.12
Qwen2-VL 2.76 3.07 2.40 4.05 3.07 .177 6.70 9.51 4.83 .52 .57 .66 2.16 2.62
Qwen2-Audio 3.58 4.53 3.40 2.65 3.54 .190 5.93 9.30 4.85 .42 .46 .66 1.97 2.75
Chameleon-7B 1.44 2.97 2.80 2.45 2.41 .156 4.21 9.39 4.66 .45 .47 .70 1.57 1.99
Llama3.1-8B-Instruct 1.05 1.20 1.20 1.35 1.20 .231 7.69 9.58 5.15 .55 .59 .65 3.08 2.14
Gemini-1.5-Pro 5.36 5.67 6.70 6.70 6.11 .227 9.45 9.65 6.76 .44 .47 .66 3.05 4.58
GPT-4o 2.66 3.48 4.20 5.15 3.87 .266 9.51 9.70 6.64 .51 .56 .67 3.96 3.92
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_published_table(row):
    numbers = [float(number) for number in row[1:]]
    dimensions = {
        name: scores.Mean(value, 41)
        for name, value in zip(scores.DIMENSIONS, numbers[:4], strict=True)
    }
    amu_score, select = numbers[4], scores.Mean(numbers[5], 100)
    follow = dict(zip("TVA", numbers[6:9], strict=True))
    synergy = dict(zip(scores.PAIRS, numbers[9:12], strict=True))
    ours = scores.summary(
        dimensions, follow, synergy, select, dict.fromkeys(scores.PAIRS, select)
    )
    assert ours["amu"] == pytest.approx(amu_score, abs=0.01)
    assert ours["amg"] == pytest.approx(numbers[12], abs=0.01)
    assert ours["overall"] == pytest.approx(numbers[13], abs=0.01)
    # With one alpha for all pairs both formulas are one.
    assert ours["amg_printed"] == pytest.approx(ours["amg"])


FOLLOW = {"T": 8.0, "V": 6.0, "A": 4.0}
SYNERGY = {"TV": 0.5, "TA": 0.25, "VA": 1.0}


def test_the_printed_formula_by_hand():
    alphas = {"TV": 0.4, "TA": 0.2, "VA": 0.1}
    # .4 * 7 * .5 + .2 * 6 * .25 + .1 * 5 * 1
    assert scores.amg_printed(FOLLOW, SYNERGY, alphas) == pytest.approx(2.2)
    # .3 * (3.5 + 1.5 + 5)
    assert scores.amg_table(FOLLOW, SYNERGY, 0.3) == pytest.approx(3.0)
    assert scores.overall(4.0, 3.0) == 3.5


def test_scores_that_are_not_there():
    assert scores.mean([8, None, 4, float("nan")]) == scores.Mean(6.0, 2, 2)
    assert scores.mean([None]) == scores.Mean(None, 0, 1)
    assert scores.mean([]).value is None
    assert str(scores.mean([1, None])) == "1.000 (1 scored, 1 missing)"
    three = {name: scores.Mean(5.0, 3) for name in scores.DIMENSIONS[:3]}
    assert scores.amu(three | {"safety": scores.mean([None])}) is None
    assert scores.overall(None, 2.0) is None
    silent = FOLLOW | {"A": None}
    assert scores.amg_table(silent, SYNERGY, 0.3) is None
    only_tv = {"TV": 0.5, "TA": 0.0, "VA": 0.0}
    assert scores.amg_printed(silent, SYNERGY, only_tv) == pytest.approx(0.5 * 3.5)
    assert scores.amg_printed(silent, SYNERGY, only_tv | {"TA": 0.1}) is None
    assert scores.vision(scores.Mean(8.0, 2), scores.Mean(None, 0, 3)).value == 8.0
    assert scores.vision(scores.Mean(8.0, 2), scores.Mean(4.0, 1)).value == 6.0


@pytest.mark.parametrize(
    "call,said",
    [
        (lambda: scores.amu({"perception": 5.0}), "exactly"),
        (lambda: scores.mean([float("inf")]), "infinite"),
        (lambda: scores.amg_table(FOLLOW | {"T": 11.0}, SYNERGY, 0.1), "S_T is 11"),
        (lambda: scores.amg_table(FOLLOW, SYNERGY | {"TA": -3.0}, 0.1), "TA is -3"),
        (lambda: scores.amg_table(FOLLOW, SYNERGY, 18.2), "alpha is 18.2"),
        (lambda: scores.amg_printed(FOLLOW, SYNERGY, {"TV": 1.0}), "exactly"),
    ],
)
def test_scores_that_cannot_be(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- templates and grades ---


@pytest.mark.parametrize(
    "text,grade",
    [
        ("Misses the bell. [[4]]", 4),
        ("On [[1]] to [[10]] it is [[ 7 ]]", 7),
        ("[[10]]", 10),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[7.5]]", None),
        ("[[n]]", None),
        ("7/10", None),
        ("[7]", None),
        ("", None),
        (None, None),
    ],
)
def test_grades(text, grade):
    assert templates.parse_grade(text) == grade


def test_templates_must_have_their_fields(tmp_path):
    for path in templates.DIRECTORY.glob("*.txt"):
        (tmp_path / path.name).write_text(path.read_text())
    templates.load(tmp_path)
    user = tmp_path / "amu_user.txt"
    user.write_text(user.read_text().replace("$question", "$image_keywords_1"))
    with pytest.raises(ValueError, match=r"amu_user.*\$question"):
        templates.load(tmp_path)
    user.unlink()
    with pytest.raises(FileNotFoundError):
        templates.load(tmp_path)


# --- understanding ---


def item(id="7", dimension="perception", **kwargs):
    references = (
        amu.Reference("A bell by a lake", ("lake", "boat"), ("bell",)),
        amu.Reference("Ringing at the water for $5", ("water",), ()),
    )
    media = (Part("image", uri="/x/a.png"), Part("audio", uri="/x/a.wav"))
    return amu.Item(
        id, "What is ringing there?", media, dimension, references, **kwargs
    )


def test_the_judge_is_told_everything_it_needs():
    for dimension in scores.DIMENSIONS:
        asked = amu.judge_question(
            item(dimension=dimension), "It costs $5. [[10]]", TEMPLATES
        )
        system, user = asked.messages
        assert (asked.id, system.role, user.role) == ("7", "system", "user")
        for piece in (
            "What is ringing there?",
            "A bell by a lake",
            "seen: lake, boat",
            "heard: bell",
            "Ringing at the water for $5",
            "heard: (nothing noted)",
            "It costs $5. [10]",  # an answer cannot bring its own grade
        ):
            assert piece in user.text
    systems = {
        amu.judge_question(item(dimension=d), "", TEMPLATES).messages[0].text
        for d in scores.DIMENSIONS
    }
    assert len(systems) == 4
    kinds = [part.kind for part in item().prompt[0].parts]
    assert kinds == ["image", "audio", "text"]


def judge_of(replies, asked=None):
    """A judge that answers by what stands between the lines of the question."""

    def answer(conversations):
        out = []
        for messages in conversations:
            text = messages[-1].text
            response = text.split("----------")[1].strip()
            if asked is not None:
                asked.append(response)
            out.append(replies[response])
        return out

    return Local(answer)


def test_understanding_is_a_macro_average_and_counts_what_is_lacking(tmp_path):
    names = scores.DIMENSIONS
    items = [item(f"{n}-{name}", name) for name in names for n in range(3)]
    responses = {i.id: "good" for i in items}
    responses |= {
        "0-perception": "poor",
        "0-safety": "odd",
        "1-safety": "",
        "1-reasoning": None,
        "2-reasoning": "mute",
    }
    asked = []
    judge = judge_of(
        {"good": "[[8]]", "poor": "[[2]]", "odd": "hm", "mute": " "}, asked
    )
    report = amu.evaluate(items, responses, judge, tmp_path / "amu.jsonl", TEMPLATES)
    by = report["dimensions"]
    assert by["perception"] == scores.Mean(6.0, 3)
    assert by["reasoning"] == scores.Mean(8.0, 1, 2)
    assert by["safety"] == scores.Mean(4.5, 2, 1)  # 8 and, for saying nothing, 1
    assert report["amu"] == pytest.approx((6 + 8 + 8 + 4.5) / 4)
    assert report["problems"] == {
        "no response": 1,
        "judge: empty answer": 1,
        "empty response": 1,
        "the judge gave no grade": 1,
    }
    # Only what failed is asked again.
    asked.clear()
    better = judge_of({"mute": "[[8]]"}, asked)
    again = amu.evaluate(items, responses, better, tmp_path / "amu.jsonl", TEMPLATES)
    assert asked == ["mute"] and again["dimensions"]["reasoning"].count == 2
    # A new response is graded anew.
    responses["0-perception"] = "good"
    fresh = judge_of({"good": "[[9]]"}, asked)
    again = amu.evaluate(items, responses, fresh, tmp_path / "amu.jsonl", TEMPLATES)
    assert again["rows"]["0-perception"]["score"] == 9 and asked == ["mute", "good"]
    with pytest.raises(ValueError, match="unknown"):
        amu.evaluate(items, {"x": "y"}, judge, tmp_path / "b.jsonl", TEMPLATES)


# --- following ---


@pytest.mark.parametrize(
    "text,letter",
    [
        ("[[B]]", "B"),
        ("[[a]] no, [[C]]", "C"),
        ("b", "B"),
        ("(D)", "D"),
        ("B. a dog", "B"),
        ("A) a dog", "A"),
        ("The answer is C because of the bark", "C"),
        ("Answer: A", "A"),
        ("Option (B)", "B"),
        ("A dog is barking", None),
        ("The answer is A dog", None),
        ("I hear a dog", None),
        ("", None),
        (None, None),
    ],
)
def test_letters(text, letter):
    assert following.parse_choice(text) == letter


def test_following_by_rubric_and_by_choices(tmp_path):
    choices = tuple(
        following.Choice(f"q{n}", "Who?", "A. x\nB. y", "B") for n in range(3)
    )
    instructions = [
        following.Instruction("t1", "text", "Write."),
        following.Instruction("t2", "text", "Write."),
        following.Instruction("t3", "text", "Write."),
        following.Instruction("i1", "image", "Draw a lake."),
        following.Instruction("a1", "audio", "A bell.", choices),
        following.Instruction("a2", "audio", "A bell.", choices[:1]),
    ]
    sound = Part("audio", data=np.zeros(8))
    outputs = {
        "t1": Part("text", text="done"),
        "t2": Part("text", text=" "),
        "t3": None,
        "i1": Part("image", data=b"png"),
        "a1": sound,
    }
    seen, turn = [], iter(["[[9]]", "[[6]]", "[[B]]", "[[A]]", "a dog"])

    def answer(conversations):
        seen.extend(messages[-1] for messages in conversations)
        return [next(turn) for _ in conversations]

    report = following.evaluate_following(
        instructions, outputs, Local(answer), tmp_path / "f.jsonl", TEMPLATES
    )
    assert report["follow"] == {
        "text": scores.Mean(5.0, 2, 1),
        "image": scores.Mean(6.0, 1),
        "audio": scores.Mean(5.0, 2, 2),
    }
    assert report["problems"] == {
        "empty output": 1,
        "no text output": 1,
        "no audio output": 1,
        "the judge picked no option": 1,
    }
    assert "done" in seen[0].text and seen[1].parts[0] is outputs["i1"]
    assert "Draw a lake." in seen[1].text
    assert seen[2].parts[0] is sound and "A. x\nB. y" in seen[2].text
    with pytest.raises(ValueError, match="asked text, given audio"):
        following.evaluate_following(
            instructions, {"t1": sound}, Local(answer), tmp_path / "g.jsonl", TEMPLATES
        )
    with pytest.raises(ValueError, match="no rubric"):
        bare = following.Instruction("a", "audio", "A bell.")
        following.follow_question(bare, sound, TEMPLATES)


# --- selection ---

VOTES = {"t": 5, "ti": 10, "ta": 2, "tia": 6, "a": 2}


def test_vote_shares_by_hand():
    assert amg.alpha("ti", VOTES) == pytest.approx(10 / 25)
    assert amg.alpha("tia", VOTES) == pytest.approx(6 / 25 / 3)
    assert amg.alpha("ia", VOTES) == 0
    assert amg.pair_alphas("ti", VOTES) == {"TV": 0.4, "TA": 0.0, "VA": 0.0}
    assert amg.pair_alphas("t", VOTES) == {"TV": 0.0, "TA": 0.0, "VA": 0.0}
    assert amg.pair_alphas("tia", VOTES) == {
        pair: pytest.approx(0.08) for pair in SYNERGY
    }
    shares = {key: count / 25 for key, count in VOTES.items()}
    assert amg.alpha("ta", shares) == pytest.approx(amg.alpha("ta", VOTES))


@pytest.mark.parametrize(
    "key,votes,said",
    [
        ("v", VOTES, "no choice"),
        ("", VOTES, "no choice"),
        ("t", {"t": 0}, "nobody"),
        ("t", {}, "nobody"),
        ("t", {"t": -1, "i": 3}, "at least 0"),
        ("t", {"t": float("nan")}, "finite"),
        ("t", {"video": 3}, "unknown keys"),
    ],
)
def test_votes_that_are_none(key, votes, said):
    with pytest.raises(ValueError, match=said):
        amg.alpha(key, votes)


FULL = (
    "[output_format]\n[[response]]: At 12:30 a bell.\n[[image_instruction]]: a lake\n"
    "[[audio_instruction]]: a bell rings\n[/output_format]"
)


@pytest.mark.parametrize(
    "text,key,told",
    [
        (FULL, "tia", True),
        (FULL.replace("a lake", "None"), "ta", True),
        (FULL.replace("a lake", "none.").replace("a bell rings", "N/A"), "t", True),
        ("[[audio_instruction]]: a bell\n[[response]]: None", "a", True),
        ("[[image_instruction]] a lake [[audio_instruction]] rain", "ia", True),
        ("[[response]]: x\n[[image_instruction]]: <image_instruction>", "t", True),
        ("Just an answer: none needed.", "t", False),
        ("[[response]]: None\n[[image_instruction]]:\n", "t", False),
        ("", "t", False),
    ],
)
def test_choosing_modalities(text, key, told):
    chosen = amg.parse_selection(text)
    assert (chosen.key, chosen.told) == (key, told)


def test_fields_are_kept_whole():
    fields = amg.parse_selection(FULL).fields
    assert fields == {
        "text": "At 12:30 a bell.",  # the released scripts cut at the second colon
        "image": "a lake",
        "audio": "a bell rings",
    }
    clip = Part("video", data=b"x")
    assert amg.selection_of([Part("text", text="see"), clip]).key == "ti"
    assert amg.selection_of([Part("text", text=" ")]).told is False
    (message,) = amg.selection_prompt("Sing $5", TEMPLATES)
    assert "Sing $5" in message.text and "[[audio_instruction]]" in message.text


def test_selection_over_all_instructions():
    rows = [amg.Votes(str(n), "Sing.", VOTES) for n in range(4)]
    chosen = {
        "0": amg.parse_selection(FULL),
        "1": amg.parse_selection("[[response]]: a [[image_instruction]]: b"),
        "2": amg.parse_selection("plain"),
        "3": None,
    }
    report = amg.evaluate_selection(rows, chosen)
    assert report["alpha"].value == pytest.approx((0.08 + 0.4 + 0.2) / 3)
    assert (report["alpha"].count, report["alpha"].missing) == (3, 1)
    assert report["alphas"]["TV"].value == pytest.approx((0.08 + 0.4) / 3)
    assert report["alphas"]["VA"].value == pytest.approx(0.08 / 3)
    assert report["chosen"] == {"tia": 1, "ti": 1, "t": 1} and report["defaulted"] == 1


# --- synergy ---


def test_synergy_over_the_pairs_that_are_there(tmp_path):
    text, image, sound = (
        Part("text", text="t"),
        Part("image", data=b"i"),
        Part("audio", data=np.zeros(4)),
    )
    outputs = [
        amg.Output("0", {"T": text, "V": image, "A": sound}),
        amg.Output("1", {"T": text, "V": image}, {"A": "no generator for audio"}),
    ]
    values = {("text", "image"): 0.5, ("text", "audio"): 0.25}
    calls = []

    def scorer(one, two):
        calls.append((one.kind, two.kind))
        return values.get(calls[-1], float("nan"))

    path = tmp_path / "s.jsonl"
    report = amg.evaluate_synergy(outputs, scorer, path)
    assert report["synergy"] == {
        "TV": scores.Mean(0.5, 2),
        "TA": scores.Mean(0.25, 1, 1),
        "VA": scores.Mean(None, 0, 2),
    }
    assert report["problems"] == {"no generator for audio": 1} and len(calls) == 4
    assert amg.evaluate_synergy(outputs, scorer, path) == report and len(calls) == 4
    with pytest.raises(ValueError, match="sigmoid"):
        amg.evaluate_synergy(outputs, lambda a, b: 3.0, tmp_path / "t.jsonl")


# --- resuming ---


@dataclasses.dataclass(frozen=True)
class Row:
    id: str


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    rows, path, asked = [Row(str(n)) for n in range(7)], tmp_path / "r.jsonl", []

    def ask(some):
        asked.append([row.id for row in some])
        if len(asked) == 3:
            raise Killed
        return {row.id: {"score": int(row.id)} for row in reversed(some)}

    with pytest.raises(Killed):
        run.evaluate_rows(rows, ask, path, settings={"judge": "m"}, batch_size=2)
    with path.open("a") as file:
        file.write('{"id": "4", "resu')  # the line it died in
    done = run.evaluate_rows(rows, ask, path, settings={"judge": "m"}, batch_size=2)
    assert asked == [["0", "1"], ["2", "3"], ["4", "5"], ["4", "5"], ["6"]]
    assert done == {str(n): {"score": n} for n in range(7)} and list(done) == list(
        "0123456"
    )
    whole = tmp_path / "whole.jsonl"
    run.evaluate_rows(rows, ask, whole, settings={"judge": "m"}, batch_size=2)
    assert whole.read_bytes() == path.read_bytes()
    asked.clear()
    assert run.evaluate_rows(rows, ask, path, settings={"judge": "m"}) == done
    assert not asked


def test_a_kill_before_the_first_line_was_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"sett')
    done = run.evaluate_rows([Row("0")], lambda some: {"0": {"score": 1}}, path)
    assert done == {"0": {"score": 1}} and len(path.read_text().splitlines()) == 2


def test_failures_are_returned_but_not_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [Row("0"), Row("1"), Row("2")]
    answers = {"0": {"score": 1}, "1": {"error": "judge: down"}}
    done = run.evaluate_rows(rows, lambda some: answers, path)
    assert done["1"] == {"error": "judge: down"} and "error" in done["2"]
    assert len(path.read_text().splitlines()) == 2


def test_results_that_do_not_belong_here(tmp_path):
    path, rows = tmp_path / "r.jsonl", [Row("0")]

    def ask(some):
        return {"0": {"score": 1}}

    run.evaluate_rows(rows, ask, path, settings={"judge": "m"})
    with pytest.raises(ValueError, match="settings"):
        run.evaluate_rows(rows, ask, path, settings={"judge": "n"})
    with pytest.raises(ValueError, match="not asked"):
        run.evaluate_rows([Row("1")], ask, tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="repeat"):
        run.evaluate_rows([Row("1"), Row("1")], ask, tmp_path / "t.jsonl")
    path.write_text(path.read_text() + "garbage\n")
    with pytest.raises(ValueError, match="cannot be continued"):
        run.evaluate_rows(rows, ask, path, settings={"judge": "m"})


def test_fingerprints_tell_outputs_apart():
    parts = [
        None,
        Part("text", text="a"),
        Part("image", data=b"a"),
        Part("image", uri="a"),
        Part("image", data=np.zeros((2, 1), np.uint8)),
        Part("image", data=np.zeros((1, 2), np.uint8)),
    ]
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest([None, "a"]) != digest(["a", None])


# --- the published layouts ---


def amu_row(id=1, **changes):
    annotation = {
        "answer": "A bell by a lake",
        "keywords": {"visual": ["lake"], "auditory": ["bell", "wind"]},
    }
    return {
        "question_id": id,
        "question": "What rings?",
        "visual_modality_path": "visual/a.jpg",
        "auditory_modality_path": "./auditory/a.wav",
        "evaluation_dimension": "perception",
        "annotations": [annotation] * 10,
        "source": "somewhere",
    } | changes


@pytest.fixture
def amu_root(tmp_path):
    root = tmp_path / "EvalAnything-AMU"
    for name in ("visual/a.jpg", "visual/a.mp4", "auditory/a.wav", "visual/a.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"media")
    (root / "visual/empty.png").touch()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "visual/link.png").symlink_to(tmp_path / "secret.png")
    return root


def load_amu(root, rows, max_share=1.0):
    (root / "config.json").write_text(json.dumps(rows))
    quarantine = Quarantine(root / "quarantine.jsonl", max_share)
    return loaders.load_amu(root, quarantine), quarantine


def test_amu_layout(amu_root):
    rows = [
        amu_row(),
        amu_row("2", visual_modality_path="visual/a.mp4"),
        amu_row(3, evaluation_dimension="Instruction_Following"),
    ]
    items, quarantine = load_amu(amu_root, rows)
    assert [i.id for i in items] == ["1", "2", "3"] and quarantine.entries == []
    first = items[0]
    assert [part.kind for part in first.media] == ["image", "audio"]
    assert first.media[1].uri == str(amu_root / "auditory/a.wav")
    assert first.references[9] == amu.Reference(
        "A bell by a lake", ("lake",), ("bell", "wind")
    )
    assert first.extra == {"source": "somewhere"}
    assert items[1].media[0].kind == "video"
    assert items[2].dimension == "instruction-following"


def without(field):
    row = amu_row()
    del row[field]
    return row


def keywords(**changes):
    kept = {"visual": ["lake"], "auditory": ["bell"]} | changes
    words = {key: value for key, value in kept.items() if value is not None}
    return amu_row(annotations=[{"answer": "x", "keywords": words}])


@pytest.mark.parametrize(
    "row,reason",
    [
        (without("question"), "question: missing"),
        (without("annotations"), "annotations: missing"),
        (without("evaluation_dimension"), "evaluation_dimension: missing"),
        (without("auditory_modality_path"), "auditory_modality_path: missing"),
        (amu_row(question=" "), "question: needs text"),
        (amu_row(annotations=[]), "annotations"),
        (amu_row(annotations=["x"]), r"annotations\[0\]"),
        (amu_row(annotations=[{"answer": "x"}]), r"annotations\[0\].keywords: missing"),
        (keywords(auditory=None), r"annotations\[0\].keywords.auditory: missing"),
        (keywords(visual=[]), r"keywords.visual: none has"),
        (amu_row(evaluation_dimension="humour"), "no rubric"),
        (amu_row(visual_modality_path="../secret.png"), "leads out"),
        (amu_row(visual_modality_path="/etc/hostname"), "leads out"),
        (amu_row(visual_modality_path="visual/link.png"), "leads out"),
        (amu_row(visual_modality_path="visual/none.png"), "no file"),
        (amu_row(visual_modality_path="visual/empty.png"), "0 bytes"),
        (amu_row(visual_modality_path="visual/a.txt"), "ends in none"),
        (amu_row(visual_modality_path="auditory/a.wav"), "ends in none"),
        (amu_row(visual_modality_path=3), "needs text"),
        (amu_row(1), "twice"),
        (["x"], "no mapping"),
    ],
)
def test_a_record_without_what_its_rubric_asks_for(amu_root, row, reason):
    items, quarantine = load_amu(amu_root, [amu_row(1), row])
    assert [i.id for i in items] == ["1"] and quarantine.seen == 2
    (entry,) = quarantine.faults
    assert entry["row"] == 1
    with pytest.raises(ValueError, match=reason):
        raise ValueError(entry["reason"])
    quarantine.max_share = 0.1
    with pytest.raises(TooManyBad):
        quarantine.close()


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_selection_layout(tmp_path):
    rows = [
        {"instruction_uid": 1, "instruction": "Sing.", "selection": VOTES, "tag": "x"},
        {
            "instruction_uid": 2,
            "instruction": "Draw.",
            "selection": {"ti": 0.5, "i": 0.5},
        },
        {"instruction_uid": 3, "instruction": "Rest.", "selection": {"t": 0}},
        {"instruction_uid": 4, "instruction": None, "selection": {"t": 1}},
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)
    loaded = loaders.load_selection(tmp_path, quarantine)
    assert [row.id for row in loaded] == ["1", "2"] and loaded[0].prompt == "Sing."
    assert amg.alpha("ti", loaded[0].votes) == 0.4
    assert amg.alpha("i", loaded[1].votes) == 0.5
    assert loaded[0].extra == {"tag": "x"}
    assert [e["row"] for e in quarantine.faults] == [2, 3]
    assert "nobody voted" in quarantine.faults[0]["reason"]
    as_text = {**rows[0], "selection": json.dumps(VOTES)}
    assert loaders.votes(as_text).votes == VOTES
    with pytest.raises(ValueError, match="selection"):
        loaders.votes({**rows[0], "selection": "many"})
    write_parquet(tmp_path / "data" / "more.parquet", rows)
    with pytest.raises(ValueError, match="several"):
        loaders.load_selection(tmp_path, quarantine)
    with pytest.raises(FileNotFoundError):
        loaders.load_selection(tmp_path / "nowhere", quarantine)


def test_following_layout(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)
    text = [
        {"prompt_id": "p0", "prompt": "Write.", "level": 2},
        {"prompt_id": "p1"},
        {"prompt_id": "p0", "prompt": "Write."},
    ]
    (tmp_path / "text_instruct.json").write_text(json.dumps(text))
    (read,) = loaders.load_following(tmp_path, "text", quarantine)
    assert read == following.Instruction("p0", "text", "Write.", extra={"level": 2})
    assert [e["row"] for e in quarantine.entries] == [1, 2]

    def row(question_id, **changes):
        return {
            "prompt_id": "a0",
            "prompt": "A bell.",
            "question_id": question_id,
            "question": "Who?",
            "choice": "A. x\nB. y",
            "answer": "B",
            "kind": "who",
        } | changes

    audio = [
        row("q0"),
        row("q1", answer="A. x", choice=["x", "y"]),
        row("q2", answer="neither"),
        row("q0"),
        row("q3", prompt="Another."),
        row("q0", prompt_id="a1", choice={"A": "x", "B": "y"}),
        {"prompt_id": "a2", "prompt": "Rain."},
    ]
    folder = tmp_path / "audio_instruct"
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps(audio))
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0)
    first, second = loaders.load_following(tmp_path, "audio", quarantine)
    assert [choice.id for choice in first.choices] == ["q0", "q1"]
    assert first.choices[1] == following.Choice(
        "q1", "Who?", "A. x\nB. y", "A", {"kind": "who"}
    )
    assert second.id == "a1" and second.choices[0].options == "A. x\nB. y"
    assert [e["row"] for e in quarantine.entries] == [2, 3, 4, 6]


def test_a_reply_that_failed_is_no_score():
    assert amu.graded(Reply("1", error="down")) == {"error": "judge: down"}
    assert amu.graded(Reply("1", "[[3]]")) == {"score": 3, "reply": "[[3]]"}
