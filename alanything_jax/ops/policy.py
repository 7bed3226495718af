"""What policy gradients are made of: advantages, ratios, clipping, distances in KL.

Numbers of responses are [R], tables [G, K], numbers of tokens [B, T]. A reward that is
NaN is a response without one: it takes no part in anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked
from alanything_jax.ops.masked import Mean
from alanything_jax.schema import Batch

Average = Literal["response", "token", "constant"]


def group_moments(rewards: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Count, mean and standard deviation (of n - 1) of each group's rewards [..., K]."""
    valid = ~jnp.isnan(rewards)
    count = jnp.sum(valid, axis=-1, keepdims=True).astype(jnp.float32)
    total = jnp.sum(jnp.where(valid, rewards, 0.0), axis=-1, keepdims=True)
    mean = masked.divide(total, count)
    square = jnp.where(valid, (rewards - mean) ** 2, 0.0)
    variance = jnp.sum(square, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    return count, mean, jnp.sqrt(variance)


def leave_one_out(rewards: jax.Array) -> jax.Array:
    """Each reward [..., K] less the mean of its group's others; 0 where it is alone."""
    count, mean, _ = group_moments(rewards)
    gap = (rewards - mean) * count / jnp.maximum(count - 1, 1)
    return jnp.where((count > 1) | jnp.isnan(rewards), gap, 0.0)


def whiten(values: jax.Array, mask: jax.Array, eps: float = 1e-8) -> jax.Array:
    """To mean 0 and variance 1 (of n - 1) over `mask`; 0 outside."""
    count = jnp.sum(mask)
    mean = masked.divide(jnp.sum(jnp.where(mask, values, 0.0)), count)
    square = jnp.sum(jnp.where(mask, (values - mean) ** 2, 0.0))
    scale = jnp.sqrt(square / jnp.maximum(count - 1, 1)) + eps
    return jnp.where(mask, (values - mean) / scale, 0.0)


def of_responses(values: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[G, K] -> [R] as `table` numbers responses, and which of them have a number.

    What is absent, or NaN, is 0 and not among them.
    """
    present = (table >= 0) & ~jnp.isnan(values)
    return jnp.where(present, values, 0.0).reshape(-1), present.reshape(-1)


def of_tokens(values: jax.Array, batch: Batch) -> jax.Array:
    """[R] -> [B, T]: each scored token gets its response's number; 0 elsewhere."""
    picked = values[jnp.maximum(batch.response, 0)]
    return jnp.where(batch.scored, picked, jnp.zeros((), picked.dtype))


def k3(logps: jax.Array, other: jax.Array) -> jax.Array:
    """Unbiased, never negative estimate of KL(p, other) of a sampled token.

    Schulman 2020, "Approximating KL divergence": exp(d) - 1 - d, d = log other - log p.
    """
    gap = other - logps
    return jnp.exp(gap) - 1.0 - gap


def truncated(old: jax.Array, sampler: jax.Array, most: float) -> jax.Array:
    """Importance weights min(p_old / p_sampler, most), where other code has sampled."""
    return jnp.minimum(jnp.exp(old - sampler), most)


def clipped(
    ratio: jax.Array, advantage: jax.Array, low: float, high: float, most: float
) -> tuple[jax.Array, jax.Array]:
    """PPO's surrogate loss (arXiv:1707.06347, equation 7), and where it was clipped.

    `most` bounds the ratio where the advantage is negative (dual clip); inf = it does not.
    """
    bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    free = jnp.minimum(ratio, most) * advantage
    held = bounded * advantage
    return -jnp.minimum(free, held), held < free


def token_losses(
    batch: Batch, outputs: Mapping[str, Any], low: float, high: float, most: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PPO's surrogate of every token's own `advantage`, [B, T], times the importance
    weight of its sampler; where it was clipped; the weights, bounded by `most`."""
    logps, old = outputs["policy"].logps, outputs["old"].logps
    ratio, advantage = jnp.exp(logps - old), batch.numbers["advantage"]
    losses, cut = clipped(ratio, advantage, low, high, float("inf"))
    weight = truncated(old, outputs["sampler"].logps, most)
    return losses * weight, cut, weight


def average(
    losses: jax.Array, mask: jax.Array, batch: Batch, how: Average, constant: int
) -> Mean:
    """Sum and count of the losses [B, T] of tokens in `mask`.

    "response": the mean over responses of each one's mean over its tokens; "token": over
    the tokens of all; "constant": over responses, of sums divided by `constant`.
    """
    if how == "token":
        return masked.mean(losses, mask)
    sums = masked.response_sum(jnp.where(mask, losses, 0.0), batch)
    sizes = masked.response_sum(jnp.where(mask, 1.0, 0.0), batch)
    share = sums / constant if how == "constant" else masked.divide(sums, sizes)
    return masked.mean(share, sizes > 0)


def is_last(batch: Batch) -> jax.Array:
    """[B, T] bool: each response's last scored token."""
    place, size = masked.places(batch), masked.lengths(batch)
    return batch.scored & (place + 1 == of_tokens(size, batch))


def before(values: jax.Array, batch: Batch) -> jax.Array:
    """[B, T] -> [B, T]: the number at the place that predicts each scored token."""
    picked = jnp.take_along_axis(values, jnp.maximum(batch.source, 0), axis=1)
    return jnp.where(batch.scored, picked, 0.0)


def backwards(
    rewards: jax.Array, values: jax.Array, batch: Batch, discount: float, trace: float
) -> jax.Array:
    """Generalised advantages (arXiv:1506.02438, equation 16) of scored tokens, [B, T].

        d_t = r_t + discount * V_{t+1} - V_t,   A_t = d_t + discount * trace * A_{t+1}

    t runs over a response's scored tokens, what lies between them left out, and V behind
    the last is 0. With values of 0 and trace 1, A is the discounted return.
    """

    def body(carry, token):
        owner, ahead, later = carry
        scored, response, reward, value = token
        same = owner == response
        ahead, later = jnp.where(same, ahead, 0.0), jnp.where(same, later, 0.0)
        here = reward + discount * ahead - value + discount * trace * later
        new = jnp.where(scored, response, owner), value, here
        kept = tuple(jnp.where(scored, a, b) for a, b in zip(new, carry, strict=True))
        return kept, jnp.where(scored, here, 0.0)

    # A branch's scored tokens stand in its row in their order.
    columns = [x.T for x in (batch.scored, batch.response, rewards, values)]
    rows = batch.tokens.shape[0]
    start = (jnp.full(rows, -1), jnp.zeros(rows), jnp.zeros(rows))
    start = (start[0].astype(batch.response.dtype), *start[1:])
    return jax.lax.scan(body, start, tuple(columns), reverse=True)[1].T


def at_ends(rewards: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Rewards [G, K] at each response's last scored token, [B, T]; and the tokens of
    responses that have one."""
    values, kept = of_responses(rewards, batch.table)
    mask = batch.scored & of_tokens(kept, batch)
    return jnp.where(is_last(batch), of_tokens(values, batch), 0.0), mask


def reference(outputs: Mapping[str, Any]) -> jax.Array | None:
    """The reference's log-probs [B, T], without gradient; None where it is not read."""
    if "reference" not in outputs:
        return None
    return jax.lax.stop_gradient(outputs["reference"].logps)


def metrics(
    batch: Batch,
    logps: jax.Array,
    old: jax.Array,
    weight: jax.Array,
    cut: jax.Array,
    mask: jax.Array,
    reference: jax.Array | None = None,
) -> dict[str, Mean]:
    """What every policy gradient reports.

    The reward per response; over tokens in `mask`: `entropy` as estimated by -log p of
    what was sampled, `kl` and `kl_old` the distances to the reference, where there is
    one, and to the policy that the ratios are against, `clipped`, and the importance
    `weight` of the sampler.
    """
    rewards, kept = of_responses(batch.numbers["reward"], batch.table)
    far = {} if reference is None else {"kl": masked.mean(k3(logps, reference), mask)}
    return far | {
        "reward": masked.mean(rewards, kept),
        "entropy": masked.mean(-logps, mask),
        "kl_old": masked.mean(k3(old, logps), mask),
        "clipped": masked.mean(cut.astype(jnp.float32), mask),
        "sampler_weight": masked.mean(weight, mask),
    }
