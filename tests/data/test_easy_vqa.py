"""easy-VQA's layout: rows to pairs, pictures beside them, out of a wheel."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from alanything_jax.data import fetch, groups, media
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import easy_vqa
from alanything_jax.schema import parts_of

ROWS = [
    ["what is the blue shape?", "rectangle", 0],
    ["what color is the shape?", "blue", 0],
    ["is there a circle?", "no", 1],
]
COLOURS = {0: (0, 0, 255), 1: (255, 0, 0)}


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """What the index would give."""
    path = tmp_path / "easy_vqa-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for split, rows in (("train", ROWS), ("test", ROWS[::-1])):
            top = f"easy_vqa/data/{split}"
            file.writestr(f"{top}/questions.json", json.dumps(rows))
            for number, colour in COLOURS.items():
                file.writestr(f"{top}/images/{number}.png", png(colour))
        file.writestr("easy_vqa/__init__.py", "raise SystemExit")
    monkeypatch.setenv("ALANYTHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "download", lambda *args: path)
    return path


@pytest.mark.parametrize("format", ["auto", "easy_vqa"])
def test_both_splits_come_out_of_a_wheel(wheel, format):
    for split, rows in (("train", ROWS), ("test", ROWS[::-1])):
        path = f"pypi:easy-vqa==1.0/easy_vqa/data//{split}/questions.json"
        found = [example for _, example in groups.examples(path, format)]
        for example, (question, answer, number) in zip(found, rows, strict=True):
            picture, text = parts_of(example.prompt)
            assert (picture.kind, text.text) == ("image", question)
            pixels, _ = media.load(picture)
            np.testing.assert_array_equal(pixels[0, 0], COLOURS[number])
            right, wrong = (r.messages[0].text for r in example.responses)
            assert right == answer != wrong and example.feedback.chosen == 0
            assert wrong in easy_vqa.KINDS[example.extra["kind"]]
            assert example.extra["picture"] == number
    # The package's code stays where it is.
    assert not list((wheel.parent / "cache").rglob("*.py"))


def test_wrong_answers_are_drawn_by_the_record():
    def wrong(number):
        return easy_vqa.read(ROWS[1], f"questions-{number}").responses[1]

    drawn = [wrong(n).messages[0].text for n in range(200)]
    assert set(drawn) == set(easy_vqa.KINDS["colour"]) - {"blue"}
    assert drawn == [wrong(n).messages[0].text for n in range(200)]


@pytest.mark.parametrize(
    "row, says", [({"question": "?"}, "question, answer"), (["?", "pink", 0], "'pink'")]
)
def test_what_it_is_not(row, says):
    with pytest.raises(BadRecord, match=says):
        easy_vqa.read(row, "1")


def test_a_folder_that_is_not_there_or_leads_out(wheel, tmp_path):
    with pytest.raises(ValueError, match="no folder 'nothing'"):
        fetch.resolve("pypi:easy-vqa==1.0/nothing//x.json")
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("bad/../../x.json", "[]")
    with pytest.raises(ValueError, match="leads out"):
        fetch.resolve("pypi:easy-vqa==1.0/bad//x.json")
