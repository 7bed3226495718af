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


def lengths(batch: Batch) -> jax.Array:
    """[R]: each response's number of scored tokens, 1 for absent ones, to divide by."""
    counted = response_sum(jnp.ones(batch.tokens.shape, jnp.float32), batch)
    return jnp.maximum(counted, 1.0)


@_everywhere
def places(batch: Batch) -> jax.Array:
    """[B, T]: which of its response's scored tokens each is, from 0; any where unscored."""
    size, scored = batch.num_responses, batch.scored.reshape(-1)
    segments = jnp.where(scored, batch.response.reshape(-1), size)
    order = jnp.lexsort((batch.index.reshape(-1), segments))
    counts = jnp.bincount(segments, length=size + 1)
    first = jnp.cumsum(counts) - counts
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return (place - first[segments]).reshape(batch.tokens.shape)


def pair_metrics(rewards: jax.Array, table: jax.Array) -> dict[str, Mean]:
    """What every comparison reports of its rewards [R], chosen against each other one."""
    chosen, rejected, mask = pairs(rewards, table)
    gap = chosen - rejected
    return {
        "reward_accuracy": mean(jnp.where(gap > 0, 1.0, 0.0), mask),
        "reward_margin": mean(gap, mask),
        "reward_chosen": mean(chosen, mask),
        "reward_rejected": mean(rejected, mask),
    }


def chosen_nll(logps: jax.Array, batch: Batch) -> Mean:
    """Negative log-likelihood per scored token of the chosen responses, of [B, T]."""
    tokens = response_sum(jnp.ones_like(logps), batch)
    sums, tokens = (
        by_group(x, batch.table)[:, 0] for x in (response_sum(logps, batch), tokens)
    )
    return Mean(-jnp.sum(sums), jnp.sum(tokens))
