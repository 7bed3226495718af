"""Every algorithm trains on every pair of modalities, packed, and goes on after a stop."""

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.reward import Reward
from alanything_jax.algorithms.sft import SFT
from alanything_jax.data import media, store
from alanything_jax.data.groups import Data
from alanything_jax.hub.source import ModelSource
from alanything_jax.playground import tasks
from alanything_jax.schema import Example, Feedback, Message, Part, Response
from alanything_jax.sharding import distributed
from tests.training.test_loop import CONFIG

ALGORITHMS = {"sft": SFT(), "dpo": DPO(), "reward": Reward()}
# Pair -> the model that takes it; of outputs other than text, the playground's.
PAIRS = {
    "t2t": "tiny:qwen3",
    "ti2t": "tiny:qwen2_5_vl",
    "ta2t": "tiny:qwen2_audio",
    "tv2t": "tiny:qwen3_vl",
    "t2i": recipes.PLAYGROUND,
    "t2a": recipes.PLAYGROUND,
    "t2v": recipes.PLAYGROUND,
    "ti2ti": recipes.PLAYGROUND,
}
KINDS = {"ti2t": "image", "ta2t": "audio", "tv2t": "video"}
# Each algorithm, and each way for media in and out, once; `make test-all` has all cells.
FAST = {("sft", "tv2t"), ("dpo", "t2i")}


def medium(kind, rng):
    if kind == "audio":
        size = int(rng.integers(4000, 16_000))
        raw = media.dump(kind, 0.1 * rng.normal(size=size), rate=16_000)
    elif kind == "video":
        raw = media.dump(kind, rng.integers(0, 256, (4, 16, 24, 3), np.uint8), fps=2)
    else:
        shape = (*rng.integers(9, 30, 2), 3)
        raw = media.dump(kind, rng.integers(0, 256, shape, np.uint8))
    return Part(kind, data=raw)


def said(text):
    return Response((Message("assistant", (Part("text", text=text),)),))


def examples(pair, count=12):
    """Pairs of answers; every third prompt of a pair with media in has none."""
    if PAIRS[pair] == recipes.PLAYGROUND:
        asked = iter(tasks.pairs(count * len(tasks.TASKS), 0, 0.0, "train"))
        return [e for e in asked if e.extra["goal"]["task"] == pair]
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        parts = [Part("text", text=f"what is {n}?")]
        if pair in KINDS and n % 3:
            parts.insert(n % 2, medium(KINDS[pair], rng))
        answers = (said("a thing" * (n % 3 + 1)), said(f"no {n}"))
        prompt = (Message("user", tuple(parts)),)
        out.append(Example(str(n), prompt, answers, Feedback(chosen=0)))
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pair -> its data set, written once."""
    folder, made = tmp_path_factory.mktemp("data"), {}

    def path(pair):
        if pair not in made:
            store.write(examples(pair), folder / pair)
            made[pair] = str(folder / pair)
        return made[pair]

    return path


def recipe(algorithm, pair, path):
    tiny = recipes.tiny(recipes.load(CONFIG))
    change = dataclasses.replace
    return change(
        tiny,
        algorithm=ALGORITHMS[algorithm],
        model=ModelSource(PAIRS[pair]),
        data=Data(path, max_group_tokens=256),
        adapter=None,
        train=change(tiny.train, steps=2, groups_per_step=6, checkpoint_every=1),
        compute=change(tiny.compute, row_tokens=256, rows_per_microbatch=2),
    )


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "algorithm, pair",
    [
        pytest.param(a, p, marks=() if (a, p) in FAST else pytest.mark.slow)
        for a in ALGORITHMS
        for p in PAIRS
    ],
)
def test_trains_and_resumes(algorithm, pair, data, tmp_path, monkeypatch):
    made = recipe(algorithm, pair, data(pair))

    @contextlib.contextmanager
    def asked_to_stop():
        yield lambda: True

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "preemption", asked_to_stop)
        with pytest.raises(distributed.Preempted):
            alanything_jax.train(made, tmp_path / "cut", say=lambda line: None)
    assert [line["step"] for line in lines(tmp_path / "cut")] == [1]
    alanything_jax.train(made, tmp_path / "cut", say=lambda line: None)
    cut = lines(tmp_path / "cut")
    losses = [line["loss"] for line in cut]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert losses[0] != losses[1]
    if (algorithm, pair) in FAST and pair != "ti2t":
        return  # `make test-all` compares the others with a run that was not stopped
    alanything_jax.train(made, tmp_path / "whole", say=lambda line: None)
    assert lines(tmp_path / "whole") == cut
