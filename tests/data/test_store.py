"""What is converted comes back whole, to us and to TFDS, without TensorFlow."""

import datetime
import decimal
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from alanything_jax.data import groups, store
from alanything_jax.pipelines import data
from alanything_jax.schema import (
    Critique,
    Example,
    Feedback,
    Message,
    Part,
    Rating,
    Response,
)


def rich_example(n=0):
    image = Part("image", data=b"\x00png\x00\x00", meta={"width": 3})
    sound = Part("audio", data=np.arange(6, dtype=np.int16).reshape(2, 3))
    answer = Response((Message("assistant", (Part("text", text=f"a{n} é"), image)),))
    return Example(
        f"id-{n}",
        (Message("user", (Part("text", text="p"), sound, Part("video", uri="v.mp4"))),),
        (answer, Response((Message("assistant", (Part("text", text="b"),)),))),
        Feedback(
            chosen=0,
            labels=(True, None),
            margin=0.25,
            ratings=(Rating(1, "harmless", 3.0, rationale="so", rater="human"),),
            critiques=(Critique("too short", 1, refinement=answer),),
        ),
        {"list": [1, {"deep": None}], "text": "x\x00"},
    )


def same(one, other):
    return store.to_json(one) == store.to_json(other)


def test_round_trip_with_media_feedback_and_trailing_zeros(tmp_path):
    examples = [rich_example(n) for n in range(7)]
    assert store.write(examples, tmp_path / "d", records_per_shard=3) == 7
    back = store.read(tmp_path / "d")
    assert len(back) == 7
    assert all(same(a, b) for a, b in zip(examples, back, strict=True))
    sound = back[6].prompt[0].parts[1].data
    assert sound.dtype == np.int16 and sound.shape == (2, 3)
    assert back[0].responses[0].messages[0].parts[1].data == b"\x00png\x00\x00"
    assert isinstance(back[0].responses, tuple) and back[0].extra["list"] == [
        1,
        {"deep": None},
    ]


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        store.write([rich_example(n) for n in range(4)], tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "dataset_info.json" in files and "features.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()


def test_tfds_reads_it_without_tensorflow(tmp_path):
    store.write(
        [rich_example(n) for n in range(5)], tmp_path / "d", records_per_shard=2
    )
    code = f"""
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(tmp_path / "d")!r}).as_data_source("train")
print(len(source), source[4]["id"].decode())
from alanything_jax.data.store import from_json
import json
example = from_json(json.loads(source[4]["example"]))
print(example.prompt[0].parts[1].data.tolist())
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["5 id-4", "[[0, 1, 2], [3, 4, 5]]"], (
        done.stderr
    )


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    store.write([rich_example()], tmp_path / "d")
    with pytest.raises(ValueError, match="is not empty"):
        store.write([rich_example()], tmp_path / "d")

    def failing():
        yield rich_example()
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError):
        store.write(failing(), tmp_path / "e")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    with pytest.raises(ValueError, match="no record to write"):
        store.write([], tmp_path / "e")
    with pytest.raises(ValueError, match="holds no .array_record shards"):
        store.read(tmp_path)


def test_further_columns_of_a_table_are_kept_as_text(tmp_path):
    when, price = datetime.date(2026, 1, 2), decimal.Decimal("1.50")
    row = {"prompt": "a", "completion": "b", "when": when, "price": price}
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet"
    )
    data.convert(data.Source(str(tmp_path / "a.parquet")), tmp_path / "d")
    ((_, example),) = groups.examples(str(tmp_path / "d"))
    assert example.extra == {"when": "2026-01-02", "price": "1.50"}


def test_convert_any_source(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c", "k": 1}\n{"x": 1}\n'
    )
    aside = data.convert(data.Source(str(source)), tmp_path / "d", max_bad_share=0.5)
    assert aside.seen == 2 and [e["row"] for e in aside.entries] == [1]
    assert "chosen: missing" in aside.path.read_text()
    ((row, example),) = groups.examples(str(tmp_path / "d"))
    assert row == 0 and example.extra == {"k": 1} and example.feedback.chosen == 0
    report = data.check(data.Source(str(tmp_path / "d")))
    assert report.records == 1 and report.feedback["preference"] == 1 and not report.bad
