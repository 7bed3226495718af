"""The page of records: every medium can be seen or heard, nothing said of it is lost."""

import collections
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from alanything_jax.cli.main import main
from alanything_jax.data import media
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.coder import Coder, Soft
from alanything_jax.data.encode import BadRecord, Limits, encode
from alanything_jax.models.grammar import Grammar
from alanything_jax.pipelines import data
from alanything_jax.pipelines.inspect_page import Room, write_page
from alanything_jax.pipelines.inspect_tokens import Reader, reader
from alanything_jax.schema import (
    Critique,
    Example,
    Feedback,
    Medium,
    Message,
    Part,
    Rating,
    Response,
    parts_of,
)
from tests.pipelines.test_report import Reader as Parsed

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
HOSTILE = '<script>alert("1")</script> & <img src=https://example.org/x>'
# As templates of models with encoders are: it writes the placeholder itself.
TYPED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}{% for p in m['content'] %}"
    "{{ p['text'] if p['type'] == 'text' else '@' }}{% endfor %}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{{ 'assistant\n' }}{% endif %}"
)
WHOLE = Limits(*[1 << 30] * 3)


def text(role, said):
    return Message(role, (Part("text", text=said),))


def jpeg():
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG")
    return out.getvalue()


def page(tmp_path, records, *more):
    path = tmp_path / "page.html"
    counts = write_page(path, "some.jsonl", enumerate(records), *more)
    assert counts == (len(records), sum(isinstance(r, Exception) for r in records))
    raw = path.read_text("ascii")
    assert not re.search(r"<script|<link|<iframe|url\(|@import", raw)
    parsed = Parsed(raw)
    assert all(src.startswith("data:") for src in parsed.attributes("src"))
    assert all(link.startswith("#row-") for link in parsed.attributes("href"))
    return parsed


def found(parsed, tag, kind=None):
    return [
        attributes
        for name, attributes in parsed.tags
        if name == tag and kind in (None, *attributes.get("class", "").split())
    ]


@pytest.fixture(scope="module")
def playground():
    return reader("playground:24x1")


@pytest.fixture(scope="module")
def pairs():
    return [
        example for _, example in data.some(data.Source("playground:pairs/12"), 0, 12)
    ]


def test_every_medium_and_rating_is_on_the_page(tmp_path, pairs):
    parsed = page(tmp_path, pairs)
    kinds, scores, said = collections.Counter(), [], []
    for example in pairs:
        feedback = example.feedback
        refined = [c.refinement for c in feedback.critiques if c.refinement]
        turns = [m for r in (*example.responses, *refined) for m in r.messages]
        kinds.update(part.kind for part in parts_of([*example.prompt, *turns]))
        scores += [f"{r.score:g}" for r in feedback.ratings]
        said += [part.text for part in parts_of([*example.prompt, *turns])]
        said += [r.rationale for r in feedback.ratings]
        said += [c.text for c in feedback.critiques]
    assert min(kinds[kind] for kind in ("image", "audio", "video")) > 2
    pictures = [a["src"][:14] for a in found(parsed, "img", "picture")]
    assert pictures.count("data:image/png") == kinds["image"]
    assert pictures.count("data:image/gif") == kinds["video"]
    assert len(found(parsed, "audio")) == kinds["audio"]
    assert len(found(parsed, "td", "score")) == len(scores)
    order = [e for example in pairs for e in _by_response(example)]
    shown = re.findall(r"score\">([\d.]+)<", (tmp_path / "page.html").read_text())
    assert shown == [f"{rating.score:g}" for rating in order]
    for words in filter(None, said):
        assert " ".join(words.split()) in parsed.text
    assert len(found(parsed, "div", "won")) == len(pairs)
    assert [a["id"] for a in found(parsed, "section")] == [
        f"row-{n}" for n in range(12)
    ]


def _by_response(example):
    ratings = example.feedback.ratings
    return [
        r for n in range(len(example.responses)) for r in ratings if r.response == n
    ]


def test_the_bar_and_the_counts_are_those_of_the_packed_row(
    tmp_path, pairs, playground
):
    parsed = page(tmp_path, pairs, playground)
    bars, at = [], -1
    for tag, attributes in parsed.tags:
        if "stack" in attributes.get("class", ""):
            bars.append([])
        elif tag == "i":
            bars[-1].append(attributes)
    tables = re.findall(
        r'class="counts">(.*?)</table>', (tmp_path / "page.html").read_text()
    )
    assert len(bars) == len(tables) == len(pairs)
    for at, (example, bits) in enumerate(zip(pairs, bars, strict=True)):
        group = encode(example, playground.tokenizer, WHOLE, playground.coder)
        widths = [float(re.fullmatch(r"width:([\d.]+)%", b["style"])[1]) for b in bits]
        assert sum(widths) == pytest.approx(100, abs=0.01 * len(bits))
        sizes = [(b["title"], int(b["title"].rpartition(": ")[2])) for b in bits]
        assert sum(n for _, n in sizes) == len(group.prompt) + sum(
            len(branch.tokens) for branch in group.branches
        )
        first = example.feedback.chosen
        for number, branch in zip((first, 1 - first), group.branches, strict=True):
            mine = [x for x in sizes if x[0].startswith(f"response {number},")]
            assert sum(n for _, n in mine) == len(branch.tokens)
            assert sum(n for t, n in mine if ", scored" in t) == branch.scored.sum()
            assert (
                sum(n for t, n in mine if ", text" not in t)
                == (branch.stream > 0).sum()
            )
        cells = re.findall(r'class="figure">(\d+)<', tables[at])
        kinds = len(re.findall("<th>", tables[at])) - 3
        rows = np.array(cells, int).reshape(3, kinds + 2)
        assert (rows[:, :kinds].sum(1) == rows[:, kinds]).all()
        assert rows[:, -1].tolist() == [0, *(b.scored.sum() for b in group.branches)]


def test_an_encoders_tokens_are_counted_by_their_kind(tmp_path):
    """Four copies of the placeholder stand for a picture; the tokenizer takes bytes."""
    medium = Medium("image", "vision", {"segment": np.ones(4, np.int32)}, np.arange(4))
    plain = reader("tiny:llama")
    tokenizer = byte_tokenizer(TYPED)
    slot = tokenizer("@")["input_ids"][0]
    taken = Soft(slot, lambda array, known: medium, lambda medium: "@" * 4)
    coder = Coder(Grammar(300, ()), {"image": "@"}, soft={"image": taken})
    ask = Message("user", (Part("text", text="see "), Part("image", data=NOISE)))
    record = Example("a", (ask,), (Response((text("assistant", "noise"),)),))
    page(tmp_path, [record], Reader("toy", tokenizer, coder))
    raw = (tmp_path / "page.html").read_text()
    assert 'title="prompt, image, not scored: 4"' in raw and "[image: 4 tokens]" in raw
    assert 'title="response 0, text, scored: 6"' in raw
    assert "<mark>noise&lt;|im_end|&gt;</mark>" in raw
    parsed = page(tmp_path, [record], plain)
    assert (
        "tiny:llama cannot read it: messages: a user message holds image" in parsed.text
    )
    assert not found(parsed, "div", "stack")


def test_all_that_is_said_is_text_and_all_of_it_is_there(tmp_path):
    critique = Critique(
        f"First ##Critique: too short;\nsays {HOSTILE} ##Refinement: say more.",
        0,
        rater="judge",
    )
    feedback = Feedback(
        1,
        (False, True, None),
        2.5,
        (
            Rating(0, "Rule conformity", 3.5, HOSTILE, "judge"),
            Rating(0, "Rule conformity", 2, None, "person"),
            Rating(9, "stray", 1, "of no response"),
        ),
        (critique, Critique("of both", None, "clarity")),
        "people",
    )
    answers = [Response((text("assistant", said),)) for said in (HOSTILE, "b", "c")]
    turns = Response(
        (text("assistant", "a call"), text("tool", "20"), text("assistant", "d"))
    )
    extra = {
        HOSTILE: "en",
        "raw": {"a": [b"\0" * 999, HOSTILE]},
        "long": "word " * 2000,
    }
    record = Example(
        HOSTILE,
        (text("system", "Be kind."), text("user", HOSTILE)),
        (*answers, turns),
        feedback,
        extra,
    )
    parsed = page(tmp_path, [record])
    assert parsed.text.count(" ".join(HOSTILE.split())) == 6
    assert json.dumps(HOSTILE)[1:-1] in parsed.text
    for said in (
        "4 responses chosen: response 1 margin 2.5 by people",
        "Response 0 rejected undesirable",
        "Response 1 chosen desirable",
        "Response 2 rejected c",
        "assistant a call tool 20 assistant d",
        "Ratings by judge, person",
        "Rule conformity 2 person",
        "judge First Critique too short; says",
        "Refinement say more.",
        "Of all responses Ratings stray 1 of no response",
        "1 critique by dimension clarity of both",
        "system Be kind.",
        "... (10,000 characters)",
        "Give --model to see tokens",
    ):
        assert said in parsed.text, said


def test_what_cannot_be_shown_says_why(tmp_path):
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(NOISE[:16, :32].copy(), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    tiff = io.BytesIO()
    Image.fromarray(NOISE[:8, :8]).save(tiff, "TIFF")
    given = [
        Part("video", data=out.getvalue()),
        Part("image", data=jpeg(), meta={"path": "a/b.jpg"}),
        Part("image", data=tiff.getvalue()),  # browsers show no TIFF
        Part("image", data=jpeg()[:900]),
        Part("image", uri="https://example.org/a.png"),
        Part("image", uri="/no/such.png"),
        Part("audio", data=np.zeros(8000, np.float32), meta={"rate": 4000}),
        Part("audio", data=media.dump("audio", np.zeros(0, np.float32), rate=8000)),
    ]
    record = Example("a", (Message("user", tuple(given)),))
    bad = BadRecord("chosen", "missing; the row has <b>")
    parsed = page(tmp_path, [record, bad])
    assert len(found(parsed, "video")) == len(found(parsed, "audio")) == 1
    assert [a["src"][:15] for a in found(parsed, "img")] == [
        "data:image/jpeg",
        "data:image/png;",
    ]
    assert len(found(parsed, "p", "broken")) == 4
    assert len(found(parsed, "div", "broken")) == 1
    for said in (
        "1 frame of 32 x 16, 5 a second",
        "a/b.jpg: 300 x 200,",
        "2.0 s at 4000 Hz, 15.7 KiB",
        "image is not shown: the image cannot be decoded (OSError",
        "image /no/such.png is not shown: no file at /no/such.png.",
        "https://example.org/a.png: only local files are read.",
        "audio is not shown: 0 samples at 8000 Hz",
        "This record cannot be read chosen: missing; the row has <b>",
        "1 cannot be read",
    ):
        assert said in parsed.text, said
    small = len(jpeg())
    parsed = page(tmp_path, [record], None, Room(medium=small - 1))
    assert f"{small} bytes; allowed are 1 to {small - 1}" in parsed.text
    picture = Example("a", (Message("user", (given[1],) * 3),))
    parsed = page(tmp_path, [picture], None, Room(page=2 * small))
    assert len(found(parsed, "img")) == 2
    assert "the page holds as much as it may" in parsed.text


def test_the_command(tmp_path, capsys):
    source, html = tmp_path / "rows.jsonl", tmp_path / "page.html"
    rows = [
        {"prompt": "2+2?", "chosen": "four", "rejected": "five"},
        {"prompt": "x", "chosn": 1},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "inspect", str(source), "--model", "tiny:llama"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"next: alanything data inspect {source} --html page.html, or" in said
    argv = ["data", "inspect", str(source), "--html", str(html)]
    assert main([*argv, "--model", "tiny:llama"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {html}: 2 records, of which 1 cannot be read" in said
    assert f"next: alanything data check {source}" in said
    parsed = Parsed(html.read_text())
    assert "chosen: missing" in parsed.text and len(found(parsed, "div", "stack")) == 1
    assert main([*argv, "--row", "7"]) == 1
    assert "has no row 7" in capsys.readouterr().err
