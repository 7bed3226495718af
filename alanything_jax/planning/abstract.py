"""A recipe's real train step over abstract arrays: shapes and shardings, no memory."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.algorithms.base import TEACHER, scores_trained
from alanything_jax.data import soft
from alanything_jax.experiment import Experiment
from alanything_jax.hub.source import describe
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.lora import lora_specs
from alanything_jax.models.params import flatten
from alanything_jax.schema import Batch
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import rules
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts, step
from alanything_jax.training.prepare import program_of

# A schedule's length changes no shape.
STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Abstract:
    """The compiled parts of a step as (function, arguments), and what lives in memory.

    Attributes:
      accumulate, apply: a jitted function and the abstract arguments to lower it with.
      frozen: likewise the forward of the roles that do not train; None = nothing to run.
      microbatches: how often a step runs `accumulate`, and `frozen`.
      live: kind -> tree of abstract arrays that lie in memory all the time.
    """

    program: step.Program
    mesh: jax.sharding.Mesh
    microbatches: int
    accumulate: tuple[Any, tuple]
    apply: tuple[Any, tuple]
    frozen: tuple[Any, tuple] | None
    live: dict[str, Any]


def abstract(experiment: Experiment, devices: list[Any]) -> Abstract:
    """The step of a recipe on the mesh that it asks for, made of these devices.

    A group is taken to fill a row.

    Raises ValueError: a mesh that is not these devices, an array that does not divide.
    """
    algorithm, compute = experiment.algorithm, experiment.compute
    mesh = meshes.make(compute.mesh, devices)
    if mesh.size < len(devices):
        raise ValueError(
            f"compute.mesh {compute.mesh} takes {mesh.size} of {len(devices)} chips: give "
            "it all of them, such as --compute.mesh fsdp=-1."
        )
    table = meshes.check(mesh, compute.rules)
    step.check_block(compute, mesh)
    model = describe(experiment.model)
    program = program_of(experiment, model.config)
    trainable, frozen, rates = _parameters(experiment, program, model, mesh, table)
    rows = meshes.rows(mesh, table, compute.rows_per_microbatch)
    batch = _batch(experiment, program, mesh, table, rows)
    microbatches = -(-experiment.train.groups_per_step // rows)
    state, compiled = _state(experiment, program, mesh, trainable, frozen, rates)
    runs = (compiled.frozen, (frozen | trainable, batch))
    with jax.set_mesh(mesh):
        batch, fixed, counts = _annotated(
            algorithm, compiled, frozen | trainable, batch, microbatches
        )
        arguments = (trainable, frozen, batch, fixed, counts)
        carry = jax.eval_shape(functools.partial(step.zero_carry, program), *arguments)
    grads = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=trainable[path].sharding)
        for path, x in carry[0].items()
    }
    return Abstract(
        program,
        mesh,
        microbatches,
        (compiled.accumulate, (*arguments, (grads, carry[1]))),
        (compiled.apply, (state, grads)),
        runs if program.read_roles else None,
        {
            "parameters": trainable,
            "frozen": frozen,
            "optimizer": state.optimizer,
            "gradients": grads,
        },
    )


def _state(experiment, program, mesh, trainable, frozen, rates):
    """The abstract train state, and the jitted parts of a step."""
    transformation = optimizers.make(experiment.optimizer, STEPS, rates)
    shardings = {path: x.sharding for path, x in (trainable | frozen).items()}
    placed = parts.state_shardings(trainable, shardings, mesh, transformation)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    moments = jax.eval_shape(transformation.init, trainable)
    state = jax.tree.map(
        _at, step.State(number, trainable, moments), placed, is_leaf=_is_array
    )
    return state, parts.jit_parts(program, transformation, placed)


def _annotated(algorithm, compiled, frozen, batch, microbatches):
    """A microbatch with the algorithm's numbers, the frozen roles' outputs, the counts."""
    by_row, everywhere = batch.tokens.sharding, batch.table.sharding
    fixed = jax.eval_shape(compiled.frozen, frozen, batch)
    counts = jax.eval_shape(compiled.totals, batch)
    stacked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((microbatches, *x.shape), x.dtype),
        (batch, fixed),
    )
    numbers = {
        name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=everywhere)
        for name, x in jax.eval_shape(algorithm.annotate, *stacked).items()
    }
    # What a role reads of a row lies with the row; a count lies everywhere.
    fixed, counts = (
        jax.tree.map(lambda x: _at(x, by_row if x.ndim else everywhere), tree)
        for tree in (fixed, counts)
    )
    return batch.replace(numbers=batch.numbers | numbers), fixed, counts


def _at(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _is_array(x):
    return isinstance(x, jax.ShapeDtypeStruct)


def _parameters(experiment, program, model, mesh, table):
    """Abstract trainable and frozen arrays, and the rates of those that train, as
    `training.prepare.partition` has them."""
    scoring = scores_trained(program.algorithm)
    specs, role = flatten(model.specs(scoring)), program.trained
    dtype = jnp.dtype(experiment.model.param_dtype)

    def placed(owner, specs, dtype):
        return {
            f"{owner}/{path}": jax.ShapeDtypeStruct(
                spec.shape,
                jnp.dtype(spec.dtype or dtype),
                sharding=rules.named(mesh, spec.shape, spec.axes, table),
            )
            for path, spec in specs.items()
        }

    trainable, frozen = placed(role, specs, dtype), {}
    if program.teacher is not None:
        theirs = flatten(describe(experiment.teacher).specs(False))
        frozen |= placed(TEACHER, theirs, jnp.dtype(experiment.teacher.param_dtype))
    elif program.reference == "live":
        for other in program.frozen_roles:
            frozen |= placed(other, specs, dtype)
    if experiment.adapter is not None:
        head = {p: x for p, x in trainable.items() if scoring and "/score/" in p}
        frozen |= {p: x for p, x in trainable.items() if p not in head}
        small = flatten(lora_specs(model.specs(scoring), experiment.adapter))
        trainable = head | placed("lora", small, jnp.float32)
    whole = model.specs(True)
    for other in program.algorithm.trains[1:]:
        if experiment.adapter is None:
            trainable |= placed(other, flatten(whole), dtype)
            continue
        head = {"heads": {"score": whole["heads"]["score"]}}
        small = flatten(lora_specs(whole, experiment.adapter))
        trainable |= placed(other, flatten(head), jnp.float32)
        trainable |= placed(f"{other}_lora", small, jnp.float32)
    shapes = {path.split("/", 1)[1]: x.shape for path, x in trainable.items()}
    found = optimizers.multipliers(experiment.optimizer, shapes)
    rates = {path: found[path.split("/", 1)[1]] for path in sorted(trainable)}
    still = {path for path, rate in rates.items() if not np.any(rate != 0)}
    frozen |= {path: trainable[path] for path in still}
    live = [path for path in rates if path not in still]
    return {p: trainable[p] for p in live}, frozen, {p: rates[p] for p in live}


def _batch(experiment, program, mesh, table, rows):
    """One microbatch: every row holds one group of the fewest responses that do."""
    compute, algorithm = experiment.compute, experiment.algorithm
    responses = max(1, algorithm.min_responses)
    length, groups = compute.row_tokens, rows
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def by_row(*shape, dtype=jnp.int32):
        axes = ("batch",) + (None,) * (len(shape) - 1)
        at = rules.named(mesh, shape, axes, table)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

    names = "tokens group branch index stream span source response".split()
    # A margin is a group's, a label or rating a response's, a step's label a token's.
    shapes = dict.fromkeys(("margin", "multiplier", "ptx"), (groups,))
    numbers = {
        name: jax.ShapeDtypeStruct(
            shapes.get(name, (groups, responses)), jnp.float32, sharding=everywhere
        )
        for name in algorithm.numbers
        if name != "step_label"
    }
    if "step_label" in algorithm.numbers:
        numbers["step_label"] = by_row(rows, length, dtype=jnp.float32)
    for name in program.recorded.values():
        numbers[name] = by_row(rows, length, dtype=jnp.float32)
    if program.reference == "cached":
        for role in program.frozen_roles:
            numbers[f"{role}_logps"] = by_row(rows, length, dtype=jnp.float32)
    return Batch(
        **{name: by_row(rows, length) for name in names},
        position=by_row(rows, 3, length),
        table=jax.ShapeDtypeStruct((groups, responses), jnp.int32, sharding=everywhere),
        numbers=numbers,
        media={
            plan.name: {
                **{
                    name: by_row(rows, plan.budget, *tail, dtype=jnp.dtype(kind))
                    for name, tail, kind in plan.arrays
                },
                "segment": by_row(rows, plan.budget),
                "slot": by_row(rows, length),
            }
            for plan in media_plans(program.config, compute)
        },
    )


def media_plans(config: DecoderConfig, compute: step.Compute) -> list[soft.MediaPlan]:
    """What a row has of each encoder's patches: as the recipe says, else so many that
    their outputs fill half a row, shared by the encoders."""
    out = []
    for encoder in config.encoders:
        half = compute.row_tokens * encoder.merge // (2 * len(config.encoders))
        out.append(soft.plan_of(encoder, compute.media_patches or half))
    return out
