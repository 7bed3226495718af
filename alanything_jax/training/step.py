"""The compiled parts of a step: `totals`, `frozen`, `accumulate` (M times), `apply`.

Parameters live in flat dicts `{role/path: array}`. What trains and what does not are two
such dicts, so that gradients, optimizer state and checkpoints are of the first only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from alanything_jax.algorithms.base import (
    CURRENT,
    RECORDED,
    TEACHER,
    TEACHER_IDS,
    Algorithm,
    Outputs,
)
from alanything_jax.models import decoder, heads
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.lora import Lora
from alanything_jax.models.params import unflatten
from alanything_jax.ops import masked
from alanything_jax.schema import Batch
from alanything_jax.sharding import rules
from alanything_jax.training.optimizer import global_norm

Flat = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """All that a checkpoint holds of the model.

    Attributes:
      step: scalar int32, optimizer steps done.
      trainable: flat dict of the trained arrays. optimizer: optax's state.
    """

    step: jax.Array
    trainable: Flat
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Compute:
    """Shapes and placement: changes speed and memory, not what is learnt.

    Attributes:
      row_tokens: T. rows_per_microbatch: B; 0 = a row for each device that rows are
        dealt to, so that one recipe suits slices of any size.
      remat: activations kept for the backward pass: all ("none"), matmuls, or none.
      attention: backend; block: its block length.
      media_patches: of a row, for each encoder of media; 0 = as the data need.
      head_chunk, head_block: tokens, and ids of the vocabulary, scored at a time.
      mesh: devices per mesh axis, `axis=size`; empty = one device.
      rules: sharding preset.
    """

    row_tokens: int = 1024
    rows_per_microbatch: int = 1
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["dense", "blockwise", "flash", "cudnn"] = "blockwise"
    block: int = 128
    media_patches: int = 0
    head_chunk: int = 512
    head_block: int = 2048
    mesh: tuple[str, ...] = ()
    rules: str = "fsdp"


def check_block(compute: Compute, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError where a TPU's kernel cannot take the blocks that are asked for."""
    fits = compute.block % 128 == 0 or compute.block >= compute.row_tokens
    tpu = mesh.devices.flat[0].platform == "tpu"
    if tpu and compute.attention == "flash" and not fits:
        raise ValueError(
            f"compute.block {compute.block}: on a TPU attention=flash takes blocks of a "
            "multiple of 128 tokens, such as --compute.block 512."
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """What is static in every compiled part.

    Attributes:
      reference: "cached", "live" or "adapter_off"; see `Experiment`.
      temperature: of the softmax whose log-probs are read.
      teacher: config of the `TEACHER` role.
    """

    algorithm: Algorithm
    config: DecoderConfig
    compute: Compute
    compute_dtype: str = "float32"
    lora: Lora | None = None
    reference: str = "cached"
    temperature: float = 1.0
    teacher: DecoderConfig | None = None

    @property
    def trained(self) -> str:
        """The role that is exported, the first of those with gradients."""
        return self.algorithm.trains[0]

    @property
    def frozen_roles(self) -> tuple[str, ...]:
        """Roles with weights of their own, or cached numbers, that never train."""
        fixed = (*self.algorithm.trains, CURRENT, *RECORDED)
        return tuple(role for role in self.algorithm.roles if role not in fixed)

    @property
    def read_roles(self) -> tuple[str, ...]:
        """Roles whose outputs are computed before those of the trained ones."""
        current = (CURRENT,) if CURRENT in self.algorithm.roles else ()
        return current + (() if self.reference == "cached" else self.frozen_roles)

    @property
    def recorded(self) -> dict[str, str]:
        """Names of the numbers of tokens that rollouts record, by role."""
        roles = self.algorithm.roles
        return {r: f"{r}_{roles[r]}" for r in RECORDED if r in roles}


def run_role(program: Program, role: str, params: Flat, batch: Batch) -> Outputs:
    """What one role reads of a microbatch, with `params` holding every role.

    A mesh with Explicit axes has them Auto in here: the compiler says where a product or
    gather of the model lies, the rules where activations and results do.
    """
    placed = rules.partition(("batch", "length"), rules.preset(program.compute.rules))
    read = functools.partial(_read, program, role)
    return jax.sharding.auto_axes(read, out_sharding=placed)(params, batch)


def _read(program, role, params, batch):
    tree = unflatten(params)
    adapter = tree.get("lora" if role == program.trained else f"{role}_lora")
    # What a role has of its own, the rest of it is the trained model's.
    weights, config = tree[program.trained] | tree.get(role, {}), program.config
    if role == TEACHER:
        weights, config = tree[role], program.teacher
    mixed = program.compute_dtype == "mixed"
    table = rules.preset(program.compute.rules)
    states = decoder.hidden(
        weights,
        config,
        batch,
        lora=adapter,
        lora_scale=program.lora.scale if program.lora else 1.0,
        compute_dtype=jnp.float32 if mixed else jnp.dtype(program.compute_dtype),
        mixed=mixed,
        remat=program.compute.remat,
        backend=program.compute.attention,
        block=program.compute.block,
        rules=table,
    )
    kind, algorithm = program.algorithm.roles[role], program.algorithm
    if kind == "scores":
        return Outputs(scores=heads.scores(weights, states))
    given = (weights, config, states.astype(jnp.bfloat16) if mixed else states, batch)
    compute = program.compute
    how = {"chunk": compute.head_chunk, "block": compute.head_block, "rules": table}
    if role == TEACHER:
        wanted, spread = (
            (algorithm.top, program.config.vocab_size),
            algorithm.temperature,
        )
        ids, top = heads.top_logps(*given, *wanted, temperature=spread, **how)
        return Outputs(ids=ids, top=top)
    how["temperature"] = program.temperature
    if kind == "top":
        ids, spread = batch.numbers[TEACHER_IDS], algorithm.temperature
        logps, top = heads.logps_at(*given, ids, spread=spread, **how)
        return Outputs(logps=logps, top=top)
    return Outputs(logps=heads.token_logps(*given, **how))


def frozen_outputs(program: Program, params: Flat, batch: Batch) -> dict[str, Outputs]:
    """Outputs of the roles that do not train: from the batch if cached, else computed.

    `params` hold every role where the algorithm reads `CURRENT`.
    """
    out = {}
    if program.reference == "cached":
        for role in program.frozen_roles:
            out[role] = Outputs(logps=batch.numbers[f"{role}_logps"])
    for role, name in program.recorded.items():
        kind = program.algorithm.roles[role]
        out[role] = Outputs(**{kind: batch.numbers[name]})
    for role in program.read_roles:
        own = program.trained if role == CURRENT else role
        out[role] = run_role(program, own, params, batch)
    return out


def totals(program: Program, batch: Batch) -> dict[str, jax.Array]:
    """Per term its count, which depends on masks only, before any model has run."""
    zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
    wide = zeros[..., None]
    empty = Outputs(zeros, zeros, wide, wide.astype(jnp.int32))
    outputs = dict.fromkeys(program.algorithm.roles, empty)
    stacked = jax.tree.map(lambda x: x[None], (batch, outputs))
    numbers = program.algorithm.annotate(*stacked)
    batch = batch.replace(
        numbers=batch.numbers | {name: x[0] for name, x in numbers.items()}
    )
    terms, _ = program.algorithm.loss(batch, outputs)
    return {name: term.count for name, term in terms.items()}


def microbatch_loss(
    program: Program,
    trainable: Flat,
    frozen: Flat,
    batch: Batch,
    fixed: dict[str, Outputs],
    counts: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, masked.Mean]]:
    """This microbatch's share of the step's loss, and sums to report."""
    outputs = fixed | {
        role: run_role(program, role, frozen | trainable, batch)
        for role in program.algorithm.trains
    }
    terms, metrics = program.algorithm.loss(batch, outputs)
    shares = {
        name: term.weight * masked.divide(term.total, counts[name])
        for name, term in terms.items()
    }
    sums = {f"loss/{name}": masked.Mean(t.total, t.count) for name, t in terms.items()}
    loss = sum(shares.values())
    sums["loss"] = masked.Mean(loss, jnp.zeros(()))
    return loss, jax.lax.stop_gradient(sums | metrics)


def gradients(program, trainable, frozen, batch, fixed, counts):
    """Gradients and sums of one microbatch."""
    (_, sums), grads = jax.value_and_grad(microbatch_loss, argnums=1, has_aux=True)(
        program, trainable, frozen, batch, fixed, counts
    )
    return grads, sums


def accumulate(program, trainable, frozen, batch, fixed, counts, carry):
    """Add one microbatch's gradients and sums to the carry (gradients, sums)."""
    new = gradients(program, trainable, frozen, batch, fixed, counts)
    return jax.tree.map(jnp.add, carry, new)


def apply(
    transformation: optax.GradientTransformation, state: State, grads: Flat
) -> tuple[State, jax.Array]:
    """One optimizer step; also the gradients' norm before clipping."""

    def update(state, grads):
        updates, optimizer = transformation.update(
            grads, state.optimizer, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, optimizer), global_norm(grads)

    # Optimizers multiply matrices too: see `run_role`. All stays where it was.
    kept = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, state)
    placed = (kept, jax.sharding.PartitionSpec())
    return jax.sharding.auto_axes(update, out_sharding=placed)(state, grads)


def zero_carry(program, trainable, frozen, batch, fixed, counts):
    """Zeros in the shape of `accumulate`'s carry."""
    shapes = jax.eval_shape(
        lambda *arrays: gradients(program, *arrays),
        trainable,
        frozen,
        batch,
        fixed,
        counts,
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def measure(program, params, batch, fixed, counts):
    """Without gradient: the microbatch's sums, and per response what the role reads.

    Returns:
      sums as in `microbatch_loss`; per response [R]: the sum of log-probs (or the
      score at its end), and its number of scored tokens.
    """
    outputs = run_role(program, program.trained, params, batch)
    terms, metrics = program.algorithm.loss(batch, fixed | {program.trained: outputs})
    sums = {f"loss/{name}": masked.Mean(t.total, t.count) for name, t in terms.items()}
    loss = sum(t.weight * masked.divide(t.total, counts[n]) for n, t in terms.items())
    sums["loss"] = masked.Mean(loss, jnp.zeros(()))
    if outputs.scores is None:
        values = masked.response_sum(outputs.logps, batch)
    else:
        values = masked.response_last(outputs.scores, batch)
    tokens = masked.response_sum(jnp.ones(batch.tokens.shape), batch)
    return sums | metrics, values, tokens
