"""Media into rows: encoders run, their outputs take the places of the placeholders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from alanything_jax.models import attention, encoders
from alanything_jax.models.config import DecoderConfig
from alanything_jax.sharding.rules import Rules


def put_media(
    params: dict,
    cfg: DecoderConfig,
    x: jax.Array,
    media: dict[str, dict[str, jax.Array]],
    *,
    backend: str = "dense",
    block: int = 128,
    rules: Rules | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Embeddings [B, T, D] with soft tokens in their slots, and what deeper layers add.

    Returns:
      The embeddings; [n, B, T, D] to add behind the first n layers, None where the family
      has no such thing.
    """
    taps = None
    if cfg.deepstack:
        taps = jnp.zeros((cfg.deepstack, *x.shape), x.dtype)
    for encoder in cfg.encoders:
        if encoder.name not in media:
            continue
        given = media[encoder.name]

        def attend(q, k, v, segment):
            zero = jnp.zeros_like(segment)
            rows = attention.Rows(segment, zero, zero, zero)
            planned = attention.plan(rows, None, backend, block)
            return attention.attend(q, k, v, planned, rules)

        outputs, deep = encoders.of(encoder).encode(
            params["encoders"][encoder.name], encoder, given, attend
        )
        x = _put(x, outputs, given["slot"])
        if deep is not None:
            taps = jax.vmap(_put, in_axes=(0, 0, None))(taps, deep, given["slot"])
    return x, taps


def _put(x: jax.Array, outputs: jax.Array, slot: jax.Array) -> jax.Array:
    """x [B, T, D] with outputs[slot] where slot >= 0; outputs [B, S, D], slot [B, T]."""
    found = jnp.take_along_axis(outputs, jnp.maximum(slot, 0)[..., None], axis=1)
    return jnp.where((slot >= 0)[..., None], found.astype(x.dtype), x)


def encoder_specs(cfg: DecoderConfig) -> dict[str, Any]:
    """Parameters of every encoder, by its name."""
    return {e.name: encoders.of(e).specs(e) for e in cfg.encoders}
