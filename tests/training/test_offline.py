"""Objectives with a statistic of the step, through the real loop."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.algorithms.aot import AOT
from alanything_jax.algorithms.kto import KTO

CONFIGS = Path(__file__).parents[2] / "configs"


def train(name, path, **changes):
    recipe = recipes.tiny(recipes.load(CONFIGS / name))
    steps = dataclasses.replace(recipe.train, steps=3, tensorboard=False)
    recipe = dataclasses.replace(recipe, train=steps, **changes)
    alanything_jax.train(recipe, path, say=lambda line: None)
    return [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]


def small(name):
    """Rows so short that a step has several microbatches."""
    compute = recipes.tiny(recipes.load(CONFIGS / name)).compute
    return dataclasses.replace(compute, row_tokens=128)


@pytest.mark.parametrize(
    "name,algorithm",
    [
        ("kto_smollm2.py", KTO()),
        pytest.param("dpo_smollm2.py", AOT(), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_step_is_one_however_it_is_cut(name, algorithm, tmp_path):
    whole = train(name, tmp_path / "a", algorithm=algorithm)
    cut = train(name, tmp_path / "b", algorithm=algorithm, compute=small(name))
    assert cut[1]["microbatches"] > whole[1]["microbatches"]
    # At first policy and reference are equal, and which answer leads is rounding.
    apart = {"microbatches", "fill", "tokens", "reward_accuracy"}
    apart |= {f"heldout/{name}" for name in apart}
    for one, other in zip(whole, cut, strict=True):
        for key in set(one) - apart:
            np.testing.assert_allclose(one[key], other[key], rtol=2e-4, atol=1e-5)


def test_kto_starts_at_its_baseline(tmp_path):
    first = train("kto_smollm2.py", tmp_path)[1]
    # The policy is its reference: no gain, no loss, no divergence.
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["baseline"] == pytest.approx(0.0, abs=1e-5)
