"""Logits to tokens, with the log-probabilities that a trainer would compute."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models.logps import masked_logits

# Ids whose probabilities are summed up before one of them is looked for.
BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to pick a token: penalty, temperature, top-k, top-p, min-p, in this order.

    Attributes:
      temperature: 0 takes the likeliest token; its log-prob is then at temperature 1.
      top_p: keep the smallest set of tokens with at least this probability.
      top_k: keep this many likeliest tokens; 0 = all.
      min_p: keep tokens with at least this share of the likeliest one's probability.
      repetition_penalty: logits of tokens that stand in the prompt or were said are
        divided by it, or multiplied where negative (arXiv:1909.05858); 1 = none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"{self}: temperature must be >= 0, top_p in (0, 1], top_k >= 0."
            )
        if not 0 <= self.min_p <= 1 or self.repetition_penalty <= 0:
            raise ValueError(
                f"{self}: min_p must be in [0, 1], repetition_penalty > 0."
            )


def sample(
    logits: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    allowed: tuple[jax.Array, jax.Array] | None = None,
    seen: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token a row.

    Args:
      logits: [B, V] float32.
      key: [B] typed keys, one a row, so that a row does not depend on its neighbours.
      allowed: the ids that the grammar allows each row, [B] first and one past the last.
      seen: [B, V] bool, the tokens to penalise.

    Returns:
      tokens [B] int32 and their log-probs [B] under the temperature-scaled softmax over
      what is allowed, before top-k, top-p, min-p and penalties.
    """
    if allowed is not None:
        logits = masked_logits(logits, *allowed)
    scaled = logits / (sampling.temperature or 1.0)
    peak = jnp.max(scaled, axis=-1)
    lse = peak + jnp.log(jnp.sum(jnp.exp(scaled - peak[:, None]), axis=-1))
    wanted = scaled
    if seen is not None:
        penalty = sampling.repetition_penalty
        less = jnp.where(scaled < 0, scaled * penalty, scaled / penalty)
        wanted = jnp.where(seen, less, scaled)
        peak = jnp.max(wanted, axis=-1)
    if sampling.temperature == 0:
        tokens = _likeliest(wanted, peak)
    else:
        tokens = _draw(wanted, peak, jax.vmap(jax.random.uniform)(key), sampling)
    picked = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), picked - lse


def _blocks(logits):
    padding = ((0, 0), (0, -logits.shape[-1] % BLOCK))
    padded = jnp.pad(logits, padding, constant_values=-jnp.inf)
    return rearrange(padded, "b (n s) -> b n s", s=BLOCK)


def _block(blocks, number):
    return jnp.take_along_axis(blocks, number[:, None, None], axis=1)[:, 0]


def _likeliest(logits, peak):
    """The first id whose logit is `peak` [B].

    By blocks: XLA for CPU does not vectorize its own argmax (1.1 ms of 32 x 8,192).
    """
    blocks = _blocks(logits)
    block = jnp.argmax(jnp.max(blocks, axis=-1) == peak[:, None], axis=-1)
    inside = _block(blocks, block) == peak[:, None]
    return block * BLOCK + jnp.argmax(inside, axis=-1)


def _draw(logits, peak, uniform, sampling):
    """The token at which the cumulative probability passes `uniform`, both [B].

    First the block of ids in which that is, then the id in it.
    """
    least = _least(jnp.exp(logits - peak[:, None]), sampling)

    def weigh(logits):
        weights = jnp.exp(logits - jnp.expand_dims(peak, range(1, logits.ndim)))
        if least is None:
            return weights
        low = jnp.expand_dims(least, range(1, logits.ndim))
        return jnp.where(weights >= low, weights, 0)

    blocks = _blocks(logits)
    mass = jnp.sum(weigh(blocks), axis=-1)
    rest = uniform * jnp.sum(mass, axis=-1)
    block, rest = _first_past(mass, rest)
    inside = _block(blocks, block)
    return block * BLOCK + _first_past(weigh(inside), rest)[0]


def _first_past(weights, wanted):
    """Where cumulative weights [B, n] first exceed `wanted` [B]; what is left of it there.

    A weight of 0 is never found. Rounding may leave none past it: the last one then.
    """
    total = jnp.cumsum(weights, axis=-1)
    count, some = weights.shape[-1], weights > 0
    ids = jnp.arange(count)
    past = some & (total > wanted[:, None])
    first = jnp.min(jnp.where(past, ids, count), axis=-1)
    last = jnp.max(jnp.where(some, ids, 0), axis=-1)
    at = jnp.where(first < count, first, last)[:, None]
    before = jnp.take_along_axis(total - weights, at, axis=-1)[:, 0]
    return at[:, 0], wanted - before


def _least(weights, sampling):
    """[B], the least weight that top-k, top-p and min-p leave; None: they leave all.

    Weights [B, V] are probabilities over the greatest. By bisection over the bits of a
    float: nothing is sorted.
    """
    least = None
    if 0 < sampling.top_k < weights.shape[-1]:
        least = _bisect(lambda above: jnp.sum(above, axis=-1), weights, sampling.top_k)
    if sampling.top_p < 1:
        kept = weights
        if least is not None:
            kept = jnp.where(weights >= least[:, None], weights, 0)
        limit = sampling.top_p * jnp.sum(kept, axis=-1)
        nucleus = _bisect(
            lambda above: jnp.sum(jnp.where(above, kept, 0), axis=-1), kept, limit
        )
        least = nucleus if least is None else jnp.maximum(least, nucleus)
    if sampling.min_p > 0:
        low = jnp.full(weights.shape[:1], sampling.min_p)
        least = low if least is None else jnp.maximum(least, low)
    return least


def _bisect(measure, weights, limit):
    """[B], the least weight w with `measure(weights > w) < limit`; weights are 0 to 1."""

    def body(_, ends):
        low, high = ends
        middle = (low + high) // 2
        above = weights > jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        enough = measure(above) < limit
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    low = jnp.zeros(weights.shape[:1], jnp.int32)
    _, high = jax.lax.fori_loop(0, 31, body, (low, jnp.full_like(low, one)))
    return jax.lax.bitcast_convert_type(high, jnp.float32)
