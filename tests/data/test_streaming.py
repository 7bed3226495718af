"""`train` on a stream: the same steps after a stop, bad rows, mixtures, what it needs."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import threading
import time

import fsspec
import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.sft import SFT
from alanything_jax.data import media, packing, store, streaming
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.groups import Data
from alanything_jax.data.quarantine import TooManyBad
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.schema import Example, Feedback, Message, Part, Response
from alanything_jax.sharding import distributed

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "dpo_smollm2.py"
EMPTY = {"prompt": "a", "chosen": "b", "rejected": ""}
LONG = {"prompt": "a", "chosen": "b" * 2000, "rejected": "c"}


def rows_of(name, count):
    return [
        {"prompt": "a", "chosen": f"{name}{n}", "rejected": "c", "score_chosen": 2.0}
        | {"score_rejected": 1.0}
        for n in range(count)
    ]


def write(place, rows):
    """At a local path, or an address: `memory://` stands for hf:// and gs://."""
    with fsspec.open(str(place), "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


def source(path, folder, window=6, layout=packing.Layout(2, 512, 4, 2), **changes):
    data = Data(path, stream=window, max_bad_share=changes.pop("share", 0.5))
    data = dataclasses.replace(data, weights=changes.pop("weights", ()))
    needs = (byte_tokenizer(), changes.pop("coder", None), 2)
    folder.mkdir(exist_ok=True)
    where, quiet = folder / "quarantine.jsonl", lambda line: None
    made = streaming.StreamSource(data, needs, where, layout, 4, 3, say=quiet)
    return dataclasses.replace(made, **changes)


def listed(folder):
    text = (folder / "quarantine.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def same(one, other):
    assert (one.ids, one.step, one.tokens) == (other.ids, other.step, other.tokens)
    for a, b in zip(one.microbatches, other.microbatches, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            np.testing.assert_equal(x, y)


# --- the whole of it ---


def recipe(path, steps, **changes):
    tiny = recipes.tiny(recipes.load(CONFIG))
    change = dataclasses.replace
    data = Data(path, stream=10, heldout_path="generated", max_bad_share=0.3)
    return change(
        tiny,
        data=change(data, max_group_tokens=256, **changes),
        reference="adapter_off",
        train=change(tiny.train, steps=steps, checkpoint_every=9, groups_per_step=4),
    )


def train(made, folder):
    alanything_jax.train(made, folder, say=lambda line: None)
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_training_goes_on_after_a_stop_bit_for_bit(tmp_path, monkeypatch):
    """Six steps of four go through fourteen rows almost twice."""
    rows = rows_of("s", 14)
    rows[3], rows[8], rows[11] = EMPTY, LONG, EMPTY
    path = write("memory://streamed/s.jsonl", rows)
    made = recipe(path, 6)

    @contextlib.contextmanager
    def asked_to_stop():
        asked = itertools.count(1)
        yield lambda: next(asked) == 3

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "preemption", asked_to_stop)
        with pytest.raises(distributed.Preempted):
            train(made, tmp_path / "cut")
    cut, whole = train(made, tmp_path / "cut"), train(made, tmp_path / "whole")
    assert [line["step"] for line in cut] == [*range(7)] and cut == whole
    assert "heldout/loss" in whole[-1] and len({x.get("loss") for x in whole}) == 7
    assert listed(tmp_path / "cut") == listed(tmp_path / "whole")
    found = listed(tmp_path / "whole")
    assert {(e["source"], e["row"], e["fault"]) for e in found} == {
        (path, 3, True), (path, 8, False), (path, 11, True),
    }  # fmt: skip
    assert [e["step"] for e in found] == sorted(e["step"] for e in found)


# --- steps ---


def test_steps_resume_and_bad_rows_shift_none(tmp_path):
    path = write(tmp_path / "s.jsonl", rows_of("s", 14))
    walked = list(source(path, tmp_path / "a").steps(0, 9))
    resumed = list(source(path, tmp_path / "b").steps(5, 9))
    for one, other in zip(walked[5:], resumed, strict=True):
        same(one, other)
    first = [i for data in walked[:7] for i in data.ids]
    assert sorted(first[:14]) == sorted(first[14:]) and first[:14] != first[14:]
    lines = pathlib.Path(path).read_text().splitlines()
    lines[3:5] = ["{", json.dumps(EMPTY)]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")
    shown = list(source(path, tmp_path / "c").steps(0, 9))
    for one, other in zip(walked, shown, strict=True):
        assert [i for i in one.ids if i not in ("s-3", "s-4")] == list(other.ids)
    found = listed(tmp_path / "c")
    assert {e["row"] for e in found} == {3, 4}
    assert all(f"s-{e['row']}" in walked[e["step"] - 1].ids for e in found)


def test_mixed_streams_keep_their_shares_anywhere(tmp_path):
    paths = tuple(
        write(tmp_path / f"{name}.jsonl", rows_of(name, count))
        for name, count in (("x", 6), ("y", 12))
    )
    mixed = source(paths, tmp_path / "q", weights=(3, 1))
    walked = list(mixed.steps(0, 12))
    of_y = [[i for i in data.ids if i.startswith("y")] for data in walked]
    assert [len(ids) for ids in of_y] == [1] * 12
    assert len({i for ids in of_y for i in ids}) == 12
    for one, other in zip(walked[7:], mixed.steps(7, 12), strict=True):
        same(one, other)
    # Without weights one follows the other.
    plain = list(source(paths, tmp_path / "q").steps(0, 9))
    order = [i[0] for data in plain for i in data.ids]
    assert order == (["x"] * 6 + ["y"] * 12) * 2


def test_each_host_lays_out_its_own_rows_of_the_same_steps(tmp_path):
    path = write(tmp_path / "s.jsonl", rows_of("s", 14))
    whole = list(source(path, tmp_path / "q").steps(2, 4))
    for own in ((0,), (1,)):
        # Process 1 has no list of its own.
        part = source(path, tmp_path / "q", own=own, listed=None)
        for mine, one in zip(part.steps(2, 4), whole, strict=True):
            assert mine.ids == one.ids
            for a, b in zip(mine.microbatches, one.microbatches, strict=True):
                np.testing.assert_array_equal(a.tokens, b.tokens[list(own)])
                np.testing.assert_array_equal(a.table, b.table)


# --- bad rows ---


def test_too_many_bad_rows_stop_after_a_window_with_the_list(tmp_path):
    rows = rows_of("s", 40)
    rows[1] = rows[5] = rows[30] = EMPTY
    path = write(tmp_path / "s.jsonl", rows)
    steps = source(path, tmp_path, window=8, share=0.2).steps(0, 9)
    with pytest.raises(TooManyBad, match=r"2 of 8 records .*quarantine.jsonl"):
        list(steps)
    assert {e["row"] for e in listed(tmp_path)} == {1, 5}
    assert len(list(source(path, tmp_path, window=8, share=0.25).steps(0, 9))) == 9


def test_a_step_without_a_sound_row_takes_the_next_steps(tmp_path):
    rows = rows_of("s", 16)
    rows[4:8] = [LONG] * 4
    path = write(tmp_path / "s.jsonl", rows)
    # In windows of four, a step is a window.
    walked = list(source(path, tmp_path / "a", window=4).steps(0, 4))
    assert walked[1].ids == walked[2].ids != walked[3].ids
    assert [data.step for data in walked] == [0, 1, 2, 3]
    for one, other in zip(
        walked[1:], source(path, tmp_path / "b", window=4).steps(1, 4), strict=True
    ):
        same(one, other)
    bad = write(tmp_path / "bad.jsonl", [LONG] * 3)
    with pytest.raises(ValueError, match=r"all rows of step 1 .*over a token limit"):
        list(source(bad, tmp_path / "c").steps(0, 1))


@pytest.mark.parametrize(
    "layout, said",
    [
        (packing.Layout(2, 512, 4, 1), "responses: 2: raise data.stream_responses"),
        (packing.Layout(2, 512, 4, 2, ("rating",)), "needs ['rating']"),
        (packing.Layout(2, 10, 4, 2), "more than a row of 10"),
    ],
)
def test_a_group_that_the_layout_cannot_take(layout, said, tmp_path):
    path = write(tmp_path / "s.jsonl", rows_of("s", 8))
    with pytest.raises(TooManyBad):
        list(source(path, tmp_path, layout=layout).steps(0, 2))
    assert all(said in entry["reason"] for entry in listed(tmp_path))


def test_media_over_the_rows_budget_are_set_aside(tmp_path):
    def example(n):
        pixels = np.random.default_rng(n).integers(0, 256, (28, 28, 3), np.uint8)
        images = [Part("image", data=media.dump("image", pixels))] * (
            2 if n == 2 else 1
        )
        asked = Message("user", (*images, Part("text", text="what?")))
        said = [Message("assistant", (Part("text", text=t),)) for t in ("yes", "no")]
        answers = tuple(Response((message,)) for message in said)
        return Example(f"r{n}", (asked,), answers, Feedback(chosen=0))

    store.write([example(n) for n in range(8)], tmp_path / "d")
    bundle = load_model(ModelSource("tiny:qwen2_5_vl"), False, 0)
    encoders = bundle.model.config.encoders
    with pytest.raises(ValueError, match="set compute.media_patches"):
        streaming.media_plans(encoders, 0)
    assert streaming.media_plans((), 0) == ()
    (plan,) = plans = streaming.media_plans(encoders, 40)
    assert plan.budget >= 40 and plan.budget % plan.align == 0
    layout = packing.Layout(4, 512, 4, 2, media=plans)
    made = source(str(tmp_path / "d"), tmp_path, window=8, layout=layout)
    made = dataclasses.replace(made, needs=(bundle.tokenizer, bundle.coder, 2))
    shown = list(made.steps(0, 2))
    assert sorted(i for d in shown for i in d.ids) == [
        f"r{n}" for n in (0, 1, *range(3, 8))
    ]
    (entry,) = listed(tmp_path)
    assert "Raise media_patches" in entry["reason"]
    segment = shown[0].microbatches[0].media[plan.name]["segment"]
    assert segment.shape == (4, plan.budget)


# --- the thread, and the recipe ---


def test_a_thread_works_ahead_but_not_far():
    made = []

    def items():
        for n in range(20):
            made.append((n, threading.get_ident()))
            if n == 9:
                raise OSError("gone")
            yield n

    got = streaming.ahead(items(), 3)
    assert next(got) == 0
    until = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert [n for n, _ in made] == [0, 1, 2, 3]
    assert threading.get_ident() not in {thread for _, thread in made}
    with pytest.raises(OSError, match="gone"):
        list(got)
    assert made[-1][0] == 9
    assert list(streaming.ahead(iter("abc"))) == [*"abc"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train": recipes.Train()}, "no epochs: set train.steps"),
        ({"reference": "cached"}, 'set reference "live" or "adapter_off"'),
        ({"data": Data("d", stream=8, heldout_groups=4)}, "hold out by data.heldout_p"),
        ({"data": Data("d", stream=8, view="mismatched")}, "draws from all the data"),
    ],
)
def test_what_a_stream_cannot_do(changes, said):
    with pytest.raises(ValueError, match=f"data.stream=(8|10) .*{said}"):
        dataclasses.replace(recipe("d", 3), **changes)


def test_recipes_that_stream():
    made = recipe("d", 3)
    alone = dataclasses.replace(made, algorithm=SFT(), reference="cached")
    assert alone.data.stream == 10 and isinstance(made.algorithm, DPO)
    small = recipes.tiny(made)
    assert small.data == dataclasses.replace(
        Data("generated"), stream=10, max_group_tokens=128, max_bad_share=0.0
    )
