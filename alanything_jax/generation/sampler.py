"""Logits to tokens, with the log-probabilities that a trainer would compute."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from alanything_jax.models.logps import masked_logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to pick a token.

    Attributes:
      temperature: 0 takes the likeliest token; its log-prob is then at temperature 1.
      top_p: keep the smallest set of tokens with at least this probability.
      top_k: keep this many likeliest tokens; 0 = all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"{self}: temperature must be >= 0, top_p in (0, 1], top_k >= 0."
            )


def sample(
    logits: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    allowed: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token a row.

    Args:
      logits: [B, V] float32.
      key: [B] typed keys, one a row, so that a row does not depend on its neighbours.
      allowed: the ids that the grammar allows each row, [B] first and one past the last.

    Returns:
      tokens [B] int32 and their log-probs [B] under the temperature-scaled softmax over
      what is allowed, before top-k and top-p.
    """
    if allowed is not None:
        logits = masked_logits(logits, *allowed)
    scaled = logits / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        kept = jnp.where(_keep(scaled, sampling), scaled, -jnp.inf)
        tokens = jax.vmap(jax.random.categorical)(key, kept)
    picked = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    logps = picked - jax.nn.logsumexp(scaled, axis=-1)
    return tokens.astype(jnp.int32), logps


def _keep(logits, sampling):
    """[B, V] bool: the tokens that top-k and top-p leave."""
    keep = jnp.ones(logits.shape, bool)
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        keep &= logits >= least
    if sampling.top_p < 1:
        ordered = jnp.sort(jnp.where(keep, logits, -jnp.inf), axis=-1, descending=True)
        share = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        count = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        keep &= logits >= jnp.take_along_axis(ordered, count - 1, axis=-1)
    return keep
