"""A step under Explicit axis types is the step under Auto ones, to the bit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from alanything_jax.sharding import mesh as meshes
from alanything_jax.training import optimizer
from alanything_jax.training import parts as compiled
from alanything_jax.training.prepare import prepare
from tests.sharding.test_presets import PRESETS, recipe
from tests.training.test_loop import moved

SLOW = [
    # Numbers over all microbatches of a step, by `vmap`.
    ("fsdp_tensor", "dpo", "text", "blockwise"),
    ("fsdp", "critique", "any", "flash"),
    ("fsdp_tensor", "dpo", "any", "blockwise"),
    ("sequence", "dpo", "text", "flash"),
]
CELLS = [
    # Muon, whose update multiplies matrices; gathers and scatters over cut rows.
    ("sequence", "reward", "any", "dense"),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW),
]


def one_step(made, path):
    """Metrics of the first step, and the state after it."""
    prepared = prepare(made, path / "q.jsonl", lambda line: None)
    prepared = dataclasses.replace(prepared, trainable=moved(prepared))
    owned = (prepared.trainable, prepared.shardings, prepared.mesh)
    transformation = optimizer.make(made.optimizer, 4, prepared.rates)
    with jax.set_mesh(prepared.mesh):
        state = compiled.initial_state(*owned, transformation)
        parts = compiled.compile_parts(prepared, transformation)
        state, numbers = compiled.run_step(parts, prepared, state, prepared.train[0])
    return numbers, state


@pytest.mark.parametrize("preset, algorithm, kind, backend", CELLS)
def test_explicit_equals_auto(preset, algorithm, kind, backend, tmp_path, monkeypatch):
    made = recipe(algorithm, kind, backend, PRESETS[preset], preset)
    expected, auto = one_step(made, tmp_path)
    explicit = functools.partial(meshes.make, kind=AxisType.Explicit)
    monkeypatch.setattr(meshes, "make", explicit)
    numbers, state = one_step(made, tmp_path)
    assert numbers == expected
    for path, value in state.trainable.items():
        np.testing.assert_array_equal(value, auto.trainable[path])
        assert set(value.sharding.mesh.axis_types) == {AxisType.Explicit}
    # What an Explicit array's type says: where it lies.
    assert any(any(jax.typeof(x).sharding.spec) for x in state.trainable.values())
