"""Sums over what a batch scores. A mean stays a sum and a count until the very end."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, auto_axes

from alanything_jax.schema import Batch


class Mean(NamedTuple):
    """A mean not yet divided: add the fields over microbatches, divide once."""

    total: jax.Array
    count: jax.Array


class Term(NamedTuple):
    """One named part of a loss: `weight * total / count` over the whole step.

    `count` depends on masks only, so that it can be totalled before the first
    microbatch.
    """

    weight: float
    total: jax.Array
    count: jax.Array


def mean(values: jax.Array, mask: jax.Array) -> Mean:
    """Sum and count of `values` where `mask`; what is masked may be anything."""
    return Mean(jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask, dtype=jnp.float32))


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """`total / count`, and 0 for the empty mask (its total is 0 too)."""
    return total / jnp.where(count > 0, count, 1.0)


# Where a mesh's axes are Explicit, what is scattered over devices has to say where it
# lies: one number a response, everywhere. Elsewhere `auto_axes` does nothing.
_everywhere = auto_axes(out_sharding=PartitionSpec())


@_everywhere
def response_sum(values: jax.Array, batch: Batch) -> jax.Array:
    """[B, T] -> [R]: the sum over each response's scored tokens; 0 for absent ones."""
    segments = jnp.where(batch.scored, batch.response, batch.num_responses)
    values = jnp.where(batch.scored, values, 0.0)
    return jax.ops.segment_sum(
        values.reshape(-1), segments.reshape(-1), batch.num_responses + 1
    )[:-1]


@_everywhere
def response_last(values: jax.Array, batch: Batch) -> jax.Array:
    """[B, T] -> [R]: the value at each response's last scored token (its end of turn)."""
    scored, size = batch.scored.reshape(-1), batch.num_responses
    segments = jnp.where(scored, batch.response.reshape(-1), size)
    index = batch.index.reshape(-1)
    last = jax.ops.segment_max(jnp.where(scored, index, -1), segments, size + 1)
    is_last = scored & (index == last[segments])
    picked = jnp.where(is_last, values.reshape(-1), 0.0)
    return jax.ops.segment_sum(picked, segments, size + 1)[:-1]


def by_group(values: jax.Array, table: jax.Array) -> jax.Array:
    """[R] -> [G, K] by each group's table of responses; 0 where absent."""
    return jnp.where(table >= 0, values[jnp.maximum(table, 0)], 0.0)


def pairs(
    values: jax.Array, table: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The chosen response against each other one of its group.

    Args:
      values: [R], one number a response.
      table: [G, K]; column 0 holds the chosen response.

    Returns:
      chosen, rejected and mask, each [G, K-1].
    """
    values = by_group(values, table)
    mask = (table[:, :1] >= 0) & (table[:, 1:] >= 0)
    chosen = jnp.broadcast_to(values[:, :1], mask.shape)
    return chosen, values[:, 1:], mask
