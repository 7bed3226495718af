"""The demo's page: honest words from intervals, one safe file that shows all it is given."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from alanything_jax.pipelines import report_charts as charts
from alanything_jax.pipelines.report import write_page
from alanything_jax.pipelines.report_gallery import TASK_NAMES
from alanything_jax.pipelines.report_words import about_binary, changes, headline
from alanything_jax.playground import oracle, tasks
from alanything_jax.schema import Message, Part, Response

UP, DOWN, FLAT = [0.06, 0.02, 0.1], [-0.06, -0.1, -0.02], [0.01, -0.02, 0.04]
VOID = {"meta", "img", "input", "br", "link", "hr"}


def scores(gain, binary_gain=FLAT, **modalities):
    def moved(by):
        return [0.5 + by[0], 0.48 + by[0], 0.52 + by[0]]

    node = {"base": moved([0]), "aligned": moved(gain), "binary": moved(binary_gain)}
    node |= {"gain": gain, "binary_gain": binary_gain}
    if modalities:
        node["modalities"] = {name: scores(by) for name, by in modalities.items()}
    return node


def full():
    return {
        "T1": scores(UP, t2i=UP, v2t=DOWN, choose=FLAT),
        "T0": scores(FLAT, UP, t2i=FLAT),
        "recipe": {"seeds": [20240607, 1], "base_steps": 450, "learning rate": 1e-4},
        "yield": [{"stage": "critique", "kept": 900, "dropped": {"no fault": 500}}],
        "critic": {
            "verdict_accuracy": [0.9, 0.8, 0.95],
            "dimensions": {"number": [0.8, 0.7, 0.9], "place": {"kappa": FLAT}},
        },
        "verify": [["loads", True, "yes"], ["logits", False, "2"], ["hub", None, ""]],
        "minutes": {"base": 2.5, "align": 1.5},
    }


def entries(count=16, files=False):
    rng = np.random.default_rng(0)
    out = []
    for n, example in enumerate(tasks.prompts("test", count, 0)):
        before = tasks.answer(example, rng, changes=2, files=files)
        after = tasks.answer(example, rng, files=files)
        verdicts = [oracle.score(example, side) for side in (before, after)]
        out.append(
            {
                "task": example.extra["goal"]["task"],
                "prompt": example.prompt,
                "before": before,
                "after": after,
                "critique": oracle.critique(verdicts[0]),
                "refined": after if n % 2 else None,
                "score_before": verdicts[0].overall,
                "score_after": verdicts[1].overall,
            }
        )
    return out


def losses(count=50):
    return [(n + 1, 1 / (n + 1)) for n in range(count)]


def page(tmp_path, report=None, curves=None, gallery=()):
    write_page(tmp_path / "report.html", report or {}, curves or {}, gallery)
    return (tmp_path / "report.html").read_text("ascii")


class Reader(html.parser.HTMLParser):
    """Checks that tags balance; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.mark.parametrize("files", [False, True])
def test_whole_page_is_one_balanced_file_without_network_or_script(tmp_path, files):
    curves = {name: losses() for name in ("base", "critic", "align", "binary")}
    text = page(tmp_path, full(), curves, entries(files=files))
    read = Reader(text)
    assert len(set(read.ids)) == len(read.ids)
    assert "<title>alanything_jax demo</title>" in text
    assert not re.search(r"https?://|//\w+\.\w+/|<script|@import|url\(", text)
    assert all(src.startswith("data:") for src in read.attributes("src"))
    links = read.attributes("href")
    assert all(link[1:] in read.ids for link in links) and len(links) == 8
    assert all("alt" in attrs for tag, attrs in read.tags if tag == "img")
    labels = [a for tag, a in read.tags if tag == "svg" and a.get("role") == "img"]
    assert labels and all(a["aria-label"] for a in labels)
    for name in TASK_NAMES.values():
        assert name in read.text
    for said in ("900 of 1,400", "no fault", "20240607", "4.0 minutes", "not checked"):
        assert said in read.text
    assert {"audio/wav", "image/png", "image/gif"} == {
        src[5:].split(";")[0] for src in read.attributes("src")
    }


def test_a_critique_is_shown_whole_and_its_faults_stand_out(tmp_path):
    said = (
        "shows two red circles left . wanted two red square but circle . verdict bad ."
    )
    text = page(tmp_path, gallery=[entries()[0] | {"critique": said}])
    assert "<li>shows two red circles left</li>" in text
    assert "<li>wanted two red <b>square but circle</b></li>" in text
    assert "verdict: bad" in text and "<li>verdict" not in text


def test_media_on_the_page_are_those_of_the_answers(tmp_path):
    some = [entry for entry in entries() if entry["task"] == "t2i"][:1]
    read = Reader(page(tmp_path, gallery=some))
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))))
        for src in read.attributes("src")
    ]
    sides = [some[0][side].messages[0].parts[0].data for side in ("before", "after")]
    assert len(shown) == 2
    for left, right in zip(shown, sides):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "t1, t0, said",
    [
        (UP, UP, "scores higher at T = 1 and T = 0."),
        (UP, FLAT, "higher at T = 1 and shows no significant change at T = 0."),
        (UP, DOWN, "scores higher at T = 1 and scores lower at T = 0."),
        (FLAT, FLAT, "shows no significant change at T = 1 and T = 0."),
        (DOWN, FLAT, "lower at T = 1 and shows no significant change at T = 0."),
        ([0.02, 0.0, 0.04], None, "model shows no significant change at T = 1."),
        (None, None, "A model that learns from language feedback."),
    ],
)
def test_headline_follows_from_the_intervals(t1, t0, said):
    report = {k: scores(gain) for k, gain in (("T1", t1), ("T0", t0)) if gain}
    assert headline(report).endswith(said)


def test_tasks_are_sorted_into_rose_unchanged_and_fell(tmp_path):
    found = changes(scores(UP, v2t=DOWN, t2i=UP, choose=FLAT))
    assert found == {
        "up": ["text to image +6.0"],
        "flat": ["choose the modality +1.0"],
        "down": ["video to text −6.0"],
    }
    text = Reader(page(tmp_path, {"T1": scores(DOWN, t2i=UP)})).text
    assert "Rose text to image +6.0 No significant change none Fell none" in text
    assert "−6.0 points [−10.0, −2.0]" in text


def test_binary_dpo_is_placed_against_the_base_and_language_feedback():
    said = about_binary(scores(UP, FLAT))
    assert said.startswith(
        "51.0, no significant change from the base (+1.0 [−2.0, 4.0])"
    )
    assert "ends above it" in said
    assert "ends below it" in about_binary(scores(DOWN, UP))
    assert "neither is clearly ahead" in about_binary(scores(UP, UP))
    assert "below the base" in about_binary(scores(UP, DOWN))
    paired = scores(UP, UP) | {"over_binary": DOWN}
    assert about_binary(paired).endswith("is below it (−6.0 [−10.0, −2.0]).")
    assert about_binary({"gain": UP}) is None


def test_what_models_prompts_and_recipes_say_is_only_text(tmp_path):
    bad = '</style><script>alert("x")</script>\' onload="x" $title &amp; é https://x.io'
    answer = Response((Message("assistant", (Part("text", text=bad),)),))
    entry = {"task": bad, "prompt": answer.messages, "before": answer, "after": answer}
    entry |= {"critique": bad, "refined": answer, "score_before": 0, "score_after": 1}
    report = full() | {"recipe": {bad: bad}, "minutes": {bad: 1}, "verify": [[bad] * 3]}
    report["yield"] = [{"stage": bad, "kept": 1, "dropped": {bad: 1}}]
    report["critic"]["dimensions"] = {bad: UP}
    report["T1"]["modalities"][bad] = scores(UP)
    text = page(tmp_path, report, {bad: losses()}, [entry])
    read = Reader(text)
    assert "script" not in {tag for tag, _ in read.tags}
    assert not read.attributes("onload")
    assert read.text.count(" ".join(bad.split())) > 8
    assert not [a for a in read.attributes("src") if "x.io" in a]


def test_each_section_is_left_out_where_its_data_are_missing(tmp_path):
    sections = {"T1": "scores", "T0": None, "recipe": None, "minutes": "facts"}
    whole = Reader(page(tmp_path, full(), {"base": losses()}, entries(8))).ids
    for name in full():
        report = {key: value for key, value in full().items() if key != name}
        Reader(page(tmp_path, report))
    read = Reader(page(tmp_path))
    assert [i for i in read.ids if i in whole] == ["next"]
    assert "learns from language feedback" in read.text
    for key, section in (sections | {"yield": "yield", "critic": "critic"}).items():
        ids = Reader(page(tmp_path, {key: full()[key]})).ids
        assert section is None or section in ids
    odd = {"T1": {"gain": [0.1, float("nan"), 0.2], "base": None}, "critic": None}
    odd |= {"T0": {"modalities": {"t2i": {"gain": UP}}}, "yield": [{"stage": "empty"}]}
    assert "scores" not in Reader(page(tmp_path, odd, {"base": [(1, 1.0)]})).ids


def test_odd_answers_are_shown_as_what_they_are(tmp_path):
    def answer(*parts):
        return Response((Message("assistant", parts),))

    prompt = (Message("system", (Part("text", text="be kind"),)), *answer().messages)
    tone = np.sin(np.arange(16_000, dtype=np.float32) / 9)
    film = np.zeros((12, 8, 8, 3), np.uint8)
    entry = {
        "task": "t2a",
        "prompt": prompt,
        "before": answer(
            Part("image", data=b"\x89PNG broken"), Part("audio", data=b"x")
        ),
        "after": answer(
            Part("audio", data=tone, meta={"rate": 16_000}), Part("video", data=film)
        ),
        "critique": "",
        "score_before": 0.5,
        "score_after": 0.5,
    }
    read = Reader(page(tmp_path, gallery=[entry]))
    for said in ("system be kind", "cannot be shown", "it said nothing", "+0"):
        assert said in read.text
    assert "sound of 1.0 seconds" in read.attributes("aria-label")
    assert "clip of 12 frames" in read.attributes("alt")


def test_scale_has_round_ticks_and_holds_its_values():
    axis = charts.scale([23.4, 97.1], 8)
    assert axis.ticks == (30, 40, 50, 60, 70, 80, 90, 100)
    assert axis.low < 23.4 and axis.high > 97.1
    assert charts.scale([5.0, 5.0], pad=0.0).ticks
    assert charts.scale([float("nan")]).at(2.0) == "100.00%"


def test_a_curve_leaves_out_steps_without_a_loss_and_one_wild_step():
    points = losses(400) + [(401, float("nan")), (402, 1e9)]
    drawn = charts.curve(points, "base", "loss")
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn)]
    assert len(heights) > 400 and "e+" not in drawn
    assert max(heights) - min(heights) > 500
