"""The jitted parts of a step put together: what loop and evaluation both call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alanything_jax.data import pipeline
from alanything_jax.schema import Batch
from alanything_jax.sharding import pjit
from alanything_jax.training import step
from alanything_jax.training.prepare import Prepared


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The jitted parts of a step; each is compiled once in a run."""

    totals: Callable[..., Any]
    frozen: Callable[..., Any]
    annotate: Callable[..., Any]
    zeros: Callable[..., Any]
    accumulate: Callable[..., Any]
    apply: Callable[..., Any]
    measure: Callable[..., Any]


def compile_parts(prepared: Prepared, transformation: Any) -> Compiled:
    """Jit every part, with parameters sharded on the way out as on the way in."""
    owned = (prepared.trainable, prepared.shardings, prepared.mesh)
    placed = state_shardings(*owned, transformation)
    return jit_parts(prepared.program, transformation, placed)


def jit_parts(
    program: step.Program, transformation: Any, state_placed: step.State
) -> Compiled:
    """The jitted parts, given where the state lies; nothing is traced yet."""
    placed = state_placed.trainable
    return Compiled(
        totals=jax.jit(functools.partial(step.totals, program)),
        frozen=jax.jit(functools.partial(step.frozen_outputs, program)),
        annotate=jax.jit(program.algorithm.annotate),
        zeros=pjit.jit_step(
            functools.partial(step.zero_carry, program), (placed, None), ()
        ),
        accumulate=pjit.jit_step(
            functools.partial(step.accumulate, program), (placed, None), (5,)
        ),
        measure=jax.jit(functools.partial(step.measure, program)),
        apply=pjit.jit_step(
            functools.partial(step.apply, transformation),
            (state_placed, None),
            (0,),
        ),
    )


def run_step(
    parts: Compiled, prepared: Prepared, state: step.State, data: pipeline.StepData
) -> tuple[step.State, dict[str, float]]:
    """One optimizer step; returns the new state and its metrics as floats."""
    frozen = prepared.frozen
    batches, counts = place(parts, prepared, data.microbatches)
    fixed = [parts.frozen(frozen | state.trainable, batch) for batch in batches]
    batches = annotate(parts, batches, fixed)
    carry = None
    for batch, outputs in zip(batches, fixed, strict=True):
        if carry is None:
            carry = parts.zeros(state.trainable, frozen, batch, outputs, counts)
        carry = parts.accumulate(state.trainable, frozen, batch, outputs, counts, carry)
    grads, sums = carry
    state, norm = parts.apply(state, grads)
    return state, {**means(sums), "grad_norm": float(norm)}


def place(
    parts: Compiled, prepared: Prepared, microbatches: Any
) -> tuple[list[Batch], Any]:
    """Microbatches on the mesh, and the step's count of every term."""
    batches = [
        pjit.place_batch(batch, prepared.mesh, prepared.rules) for batch in microbatches
    ]
    counts = [parts.totals(batch) for batch in batches]
    return batches, functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), counts)


def annotate(parts: Compiled, batches: list[Batch], fixed: list[Any]) -> list[Batch]:
    """Add the algorithm's numbers over all groups of the step to each microbatch."""
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *zip(batches, fixed, strict=True))
    numbers = parts.annotate(*stacked)
    return [
        batch.replace(numbers=batch.numbers | {n: x[m] for n, x in numbers.items()})
        for m, batch in enumerate(batches)
    ]


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Divide every (total, count) once; `loss` is a sum of shares already."""
    host = jax.device_get(dict(sums))
    loss = float(host.pop("loss").total)
    rest = {name: float(m.total / m.count) for name, m in host.items() if m.count > 0}
    return {"loss": loss} | rest


def state_shardings(
    trainable: step.Flat, shardings: Any, mesh: Any, transformation: Any
) -> step.State:
    """The optimizer's state is sharded like the parameters it belongs to."""
    placed = {path: shardings[path] for path in trainable}
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def sharding(path, leaf):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        same = (
            keys and keys[-1] in trainable and leaf.shape == trainable[keys[-1]].shape
        )
        return placed[keys[-1]] if same else replicated

    shapes = jax.eval_shape(transformation.init, trainable)
    optimizer = jax.tree_util.tree_map_with_path(sharding, shapes)
    return step.State(replicated, placed, optimizer)


def initial_state(
    trainable: step.Flat, shardings: Any, mesh: Any, transformation: Any
) -> step.State:
    """Step 0: the given parameters and a fresh optimizer."""
    placed = state_shardings(trainable, shardings, mesh, transformation)
    init = jax.jit(transformation.init, out_shardings=placed.optimizer)
    first = jax.device_put(jnp.zeros((), jnp.int32), placed.step)
    return step.State(first, trainable, init(trainable))
