"""The arena with models and judges made up here; the voting page without a browser."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from alanything_jax import schema
from alanything_jax.data import media
from alanything_jax.generation.generate import Answer
from alanything_jax.hub.source import playground_bundle
from alanything_jax.pipelines import arena_page, asking
from alanything_jax.pipelines.arena import Arena, arena, battles
from alanything_jax.pipelines.arena_battle import question, verdict
from alanything_jax.pipelines.arena_report import describe
from alanything_jax.rewards.judge import Reply


def said(*parts):
    parts = (schema.Part("text", p) if isinstance(p, str) else p for p in parts)
    return schema.Response((schema.Message("assistant", tuple(parts)),))


def model(text):
    """Answers `<text>: <the prompt>`."""
    return lambda prompts: [said(f"{text}: {prompt[-1].text}") for prompt in prompts]


class Judge:
    """Replies with what `decide` makes of the texts of answers A and B; counts."""

    def __init__(self, decide):
        self.decide, self.asked = decide, []

    def __call__(self, questions):
        replies = {}
        for one in questions:
            self.asked.append(one.id)
            text = one.messages[1].text
            found = re.search(
                r"answer A \w+ -+\n(.*)\n-+ answer B \w+ -+\n(.*)\n-+ end", text, re.S
            )
            reply = self.decide(*found.groups())
            failed = isinstance(reply, ConnectionError)
            replies[one.id] = Reply(
                one.id, *((None, str(reply)) if failed else (reply,))
            )
        return replies


def better(a, b):
    """Of two texts, the one that starts later in the alphabet."""
    return f"Well.\n[[{'A' if a > b else 'B'}]]"


def recipe(decide, models="abc", prompts=4, **fields):
    return Arena(
        models={name: model(name) for name in models},
        prompts=tuple(f"question {n}" for n in range(prompts)),
        judge=Judge(decide),
        batch_size=2,
        resamples=50,
        **fields,
    )


def run(made, folder):
    return arena(made, folder, say=lambda line: None)


def test_every_pair_on_every_prompt_in_both_orders(tmp_path):
    made = recipe(better)
    report = run(made, tmp_path)
    assert len(made.judge.asked) == len(set(made.judge.asked)) == 3 * 4 * 2
    assert [row["model"] for row in report["ratings"]] == ["c", "b", "a"]
    assert report["win_matrix"] == [[0, 0, 0], [4, 0, 0], [4, 4, 0]]
    assert report["battles"]["agreed"] == report["battles"]["rated"] == 12
    assert report["places"] == {"A": 12, "B": 12, "C": 0} and report["complete"]
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert "8 won, 0 tied, 0 lost" in describe(report)[0]
    assert "prior" in report["notes"][0] and (tmp_path / "vote.html").exists()


def test_a_judge_that_likes_a_place_gives_ties(tmp_path):
    report = run(recipe(lambda a, b: "[[A]]"), tmp_path)
    assert report["battles"]["flipped"] == 12 and not np.any(report["win_matrix"])
    np.testing.assert_allclose([row["elo"][0] for row in report["ratings"]], 1000)
    # Shown in one order only, the same judge hands out wins by chance: the seed's.
    once = run(recipe(lambda a, b: "[[A]]", both_orders=False), tmp_path / "once")
    assert once["battles"]["judged"] == 12 and 0 < once["win_matrix"][0][1] < 4


def test_a_win_and_a_tie_is_a_tie(tmp_path):
    decide = lambda a, b: "[[C]]" if a < b else "[[A]]"  # noqa: E731
    assert run(recipe(decide), tmp_path)["battles"]["wavered"] == 12


def test_garbage_is_counted_and_listed(tmp_path):
    def decide(a, b):
        if "question 1" in a:
            return "I like both [[A]] and [[B]]"
        return "  \n" if "question 2" in a else better(a, b)

    report = run(recipe(decide, models="ab"), tmp_path)
    counts = report["battles"]
    assert (counts["unparseable"], counts["empty"], counts["rated"]) == (1, 1, 2)
    assert {row["why"] for row in report["unread"]} == {"unparseable", "empty"}
    assert report["complete"]
    none = run(recipe(lambda a, b: "?", models="ab"), tmp_path / "none")
    assert none["ratings"] == [] and "nothing is rated" in none["notes"][0]


def test_a_judge_that_is_down_is_asked_again_later(tmp_path):
    up = recipe(better)
    whole = run(up, tmp_path / "whole")

    down = recipe(lambda a, b: ConnectionError("no route"), give_up_after=2)
    report = run(down, tmp_path / "cut")
    assert not report["complete"] and report["ratings"] == []
    assert (report["battles"]["failed"], report["battles"]["not asked"]) == (4, 8)
    assert {row["detail"] for row in report["unread"]} == {"no route"}
    assert "start the same command again" in describe(report)[-1]
    failed = (tmp_path / "cut" / "failed.jsonl").read_text().splitlines()
    assert len(failed) == 4 and not (tmp_path / "cut" / "battles.jsonl").exists()

    assert run(recipe(better), tmp_path / "cut") == whole
    assert (tmp_path / "cut" / "failed.jsonl").read_text() == ""


def test_a_reply_that_never_came_is_a_failure(tmp_path):
    made = recipe(better, models="ab", give_up_after=0)
    object.__setattr__(made, "judge", lambda questions: {})
    assert run(made, tmp_path)["battles"]["failed"] == 4


def test_restart_goes_on_without_repeating(tmp_path):
    whole = run(recipe(better), tmp_path / "whole")
    calls = []

    def dies(a, b):
        calls.append(a)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return better(a, b)

    with pytest.raises(KeyboardInterrupt):
        run(recipe(dies), tmp_path / "cut")
    path = tmp_path / "cut" / "battles.jsonl"
    done = path.read_text()
    assert len(done.splitlines()) == 4
    path.write_text(done + '{"id": "half a li')

    answered = []
    again = recipe(better)
    listening = {
        name: lambda prompts, m=m: answered.append(len(prompts)) or m(prompts)
        for name, m in again.contestants
    }
    object.__setattr__(again, "models", listening)
    assert run(again, tmp_path / "cut") == whole
    assert len(again.judge.asked) == (12 - 4) * 2 and not answered
    assert path.read_text() == (tmp_path / "whole" / "battles.jsonl").read_text()

    # One more model asks only for its own battles.
    more = recipe(better, models="abcd")
    assert run(more, tmp_path / "cut")["battles"]["rated"] == 24
    assert len(more.judge.asked) == 12 * 2


def test_another_arena_does_not_mix_in(tmp_path):
    run(recipe(better), tmp_path)
    with pytest.raises(ValueError, match="these differ: judge"):
        run(recipe(better, judge_name="other"), tmp_path)
    other = recipe(better)
    object.__setattr__(other, "prompts", ("question 0", "another"))
    with pytest.raises(ValueError, match="prompt prompt-00001"):
        run(other, tmp_path)


def test_answers_that_are_missing_empty_or_equal(tmp_path):
    def some(prompts):
        return [None, said(""), said("b: question 2"), said("z")][: len(prompts)]

    made = recipe(better, models="ab", prompts=4)
    object.__setattr__(made, "batch_size", 8)
    object.__setattr__(made, "models", {"a": some, "b": model("b")})
    report = run(made, tmp_path)
    assert report["missing_answers"] == [["a", "prompt-00000"]]
    assert report["empty_answers"] == [["a", "prompt-00001"]]
    counts = report["battles"]
    assert (counts["planned"], counts["identical"], counts["agreed"]) == (3, 1, 2)
    assert report["win_matrix"] == [[0, 1], [1, 0]] and report["tie_matrix"][0][1] == 1


def test_a_model_given_by_path_is_loaded_once_and_reads_text_only(
    tmp_path, monkeypatch
):
    loaded, seeds = [], []

    def generate(bundle, chats, *, seed, **_):
        seeds.append(seed)
        return [
            [Answer(said(f"z: {chat[-1].text}"), "", 0, 1, True, None)]
            for chat in chats
        ]

    bundle = playground_bundle("48x1")
    bundle = dataclasses.replace(bundle, coder=None)
    monkeypatch.setattr(
        asking, "load_model", lambda source: loaded.append(source.path) or bundle
    )
    monkeypatch.setattr(asking, "generate", generate)
    picture = (schema.Message("user", (schema.Part("image", data=b"\x89PNG"),)),)
    made = Arena(
        models=(("a", model("a")), ("disk", "some/where")),
        prompts=("one", picture, "two"),
        judge=Judge(better),
        batch_size=2,
    )
    report = run(made, tmp_path)
    assert loaded == ["some/where"] and len(set(seeds)) == 2
    assert report["missing_answers"] == [["disk", "prompt-00001"]]
    assert report["win_matrix"] == [[0, 0], [2, 0]]


def test_bad_recipes(tmp_path):
    with pytest.raises(ValueError, match="two or more"):
        recipe(better, models="a")
    with pytest.raises(ValueError, match="no prompts"):
        recipe(better, prompts=0)
    bad = recipe(better)
    object.__setattr__(bad, "models", {"a": lambda prompts: ["text"], "b": model("b")})
    with pytest.raises(ValueError, match="model a must give one Response"):
        run(bad, tmp_path)


@pytest.mark.parametrize(
    "text,letter",
    [
        ("A is better.\n[[A]]", "A"),
        ("I first thought [[A]], but no.\n\n**Verdict: [[B]]**\n", "B"),
        ("My final verdict is: [[ b ]].", "B"),
        ("[[A>>B]]", "A"),
        ("[[A<B]]", "B"),
        ("[[B > A]]", "B"),
        ("[[A=B]]", "C"),
        ("[[tie]]", "C"),
        ("Both are fine, so [[C]] it is.", "C"),
        ("[[A]] if A is better\n[[B]] if B is\n[[C]] if neither is", None),
        ("[[A]] or [[B]]", None),
        ("A", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_verdicts(text, letter):
    assert verdict(text) == letter


# --- what the judge and the person see ---

ATTACK = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> $prompt \u2028 &"
)


@pytest.fixture
def shown(tmp_path):
    """Battles with media, text that attacks, and what cannot be shown."""
    red = np.zeros((4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    png = schema.Part("image", data=media.dump("image", red))
    tone = np.sin(np.arange(800) / 5).astype(np.float32)
    wav = schema.Part("audio", data=tone, meta={"rate": 8000})
    clip = schema.Part("video", data=np.stack([red, red // 2]), meta={"fps": 2})
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    film = schema.Part("video", uri=str(tmp_path / "clip.mp4"))
    lost = schema.Part("image", data=b"<svg onload=alert(3)>")
    prompts = (
        schema.Example("seen", (schema.Message("user", (png,)),)),
        "question",
        ATTACK,
    )
    answers = {
        "one": [said("Red.", wav), said(film), said(ATTACK)],
        "</h2><b>two": [said(clip), said(lost), said("Fine.")],
        "three": [said("Red.", wav), said("same"), said(png)],
    }
    made = Arena(
        models={name: lambda prompts, x=x: x for name, x in answers.items()},
        prompts=prompts,
        judge=lambda questions: {q.id: Reply(q.id, "[[C]]") for q in questions},
        name=ATTACK,
    )
    arena(made, tmp_path / "run", say=lambda line: None)
    return made, tmp_path / "run"


class Page(html.parser.HTMLParser):
    """Elements of a page, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.attributes = [], [], []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag == "script":
            self.scripts.append("")

        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def embedded(run_dir):
    return json.loads(Page((run_dir / "vote.html").read_text()).scripts[0])


def test_the_judge_gets_media_in_place_and_answers_stay_inside_their_lines(shown):
    asked = {b.id: question(b, False) for b in battles(*shown)}
    first = asked['["seen", "one", "</h2><b>two"]']
    kinds = [part.kind for part in first.messages[1].parts]
    assert kinds == ["text", "image", "text", "audio", "text", "video", "text"]
    assert first.messages[1].parts[3].data[:4] == b"RIFF"  # samples with their own rate
    film = asked['["prompt-00001", "one", "three"]'].messages[1].parts
    assert film[1].kind == "video" and film[1].data[4:8] == b"ftyp"
    text = asked['["prompt-00002", "one", "three"]'].messages[1].text
    assert text.count(ATTACK) == 2  # as it was written: no placeholder is filled in it
    (tag,) = set(re.findall(r"^-+ (?:request|answer .|end) (\w+) -+$", text, re.M))
    assert re.fullmatch(r"[0-9a-f]{12}", tag)


def test_page_is_one_file_and_nothing_in_it_breaks_out(shown):
    text = (shown[1] / "vote.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2 and not {"img", "b", "svg"} & set(page.tags)
    assert not any(name.startswith("on") for a in page.attributes for name in a)
    assert not any({"src", "href"} & a.keys() for a in page.attributes)
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    (policy,) = [a["content"] for a in page.attributes if "http-equiv" in a]
    hashed = re.search(r"sha256-(\S+?)'", policy)[1]
    ours = hashlib.sha256(page.scripts[1].encode()).digest()
    assert base64.b64decode(hashed) == ours and "default-src 'none'" in policy


def test_page_content(shown):
    data = embedded(shown[1])
    assert len(data["pairs"]) == 8 and data["omitted"] == 1
    types = sorted(uri.split(";")[0] for uri in data["media"])
    assert types == [
        "data:audio/wav",
        "data:image/gif",
        "data:image/png",
        "data:video/mp4",
    ]
    texts = [p.get("text", "") for pair in data["pairs"] for p in pair["prompt"]]
    assert ATTACK in texts
    notes = {
        p["text"]
        for pair in data["pairs"]
        for side in pair["sides"]
        for p in side["parts"]
        if p["kind"] == "note"
    }
    assert len(notes) == 1 and "cannot be shown: unknown format" in notes.pop()
    assert arena_page.page_data(battles(*shown), 0) == data
    other = arena_page.page_data(battles(*shown), 1)
    assert [p["id"] for p in other["pairs"]] != [p["id"] for p in data["pairs"]]
    first = [b.models[0] for b in battles(*shown)]
    ordered = {b.id: b for b in battles(*shown)}
    left = [p["sides"][0]["model"] == ordered[p["id"]].models[0] for p in data["pairs"]]
    assert 0 < sum(left) < len(first)


def cast(data, *votes, rater="Ada"):
    """The file that the page would write after these votes, in the page's order."""
    cast = [
        {
            "id": pair["id"],
            "check": pair["check"],
            "left": pair["sides"][0]["model"],
            "vote": vote,
            "seconds": 7,
        }
        for pair, vote in zip(data["pairs"], votes, strict=False)
    ]
    return {
        "format": data["format"],
        "page": data["page"],
        "rater": rater,
        "votes": cast,
    }


def test_votes_come_back_as_preference_data(shown, tmp_path):
    data = embedded(shown[1])
    path = tmp_path / "votes.json"
    path.write_text(
        json.dumps(cast(data, "left", "right", "tie", "bad", rater=" Ada "))
    )
    got = arena_page.read_votes(path, battles(*shown))
    fights = {battle.id: battle for battle in battles(*shown)}
    assert len(got) == 4 and {example.feedback.rater for example in got} == {"Ada"}
    for example, pair in zip(got, data["pairs"], strict=False):
        battle = fights[pair["id"]]
        assert example.extra["arena"]["models"] == list(battle.models)
        assert [len(r.messages) for r in example.responses] == [1, 1]
        assert example.prompt == battle.prompt
    for example, pair, side in zip(got[:2], data["pairs"], (0, 1), strict=False):
        winner = example.extra["arena"]["models"][example.feedback.chosen]
        assert winner == pair["sides"][side]["model"]
    assert got[2].feedback.chosen is got[3].feedback.chosen is None
    assert got[2].feedback.labels == () and got[3].feedback.labels == (False, False)


@pytest.mark.parametrize(
    "change,match",
    [
        (lambda b: b.update(format="x"), "no file of votes"),
        (lambda b: b.update(rater="  "), "name its rater"),
        (lambda b: b["votes"][0].update(id="?"), "no battle of this run"),
        (lambda b: b["votes"][0].update(check="?"), "not those that were shown"),
        (lambda b: b["votes"][0].update(vote="up"), "a vote is one of"),
        (lambda b: b["votes"][0].pop("left"), "a vote has check"),
        (lambda b: b["votes"].append(b["votes"][0]), "voted on twice"),
        (lambda b: b["votes"].append(7), "vote 2: a vote has"),
    ],
)
def test_bad_votes(shown, tmp_path, change, match):
    ballot = cast(embedded(shown[1]), "left", "tie")
    change(ballot)
    path = tmp_path / "votes.json"
    path.write_text(json.dumps(ballot))
    with pytest.raises(ValueError, match=match):
        arena_page.read_votes(path, battles(*shown))
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        arena_page.read_votes(path, battles(*shown))
