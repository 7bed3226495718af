"""Heads: what a role reads from hidden states. Never `[B, T, V]` in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.logps import logps_of
from alanything_jax.schema import Batch


def lm_kernel(params: dict, cfg: DecoderConfig) -> jax.Array:
    """[D, V]: the language-model head, or the embedding table where it is tied."""
    if cfg.tied:
        return params["embed"]["text"]["table"].T
    return params["heads"]["text"]["kernel"]


def logits(params: dict, cfg: DecoderConfig, hidden: jax.Array) -> jax.Array:
    """float32 [..., V]. For tools and sampling; training uses `token_logps`."""
    kernel = lm_kernel(params, cfg).astype(hidden.dtype)
    return jnp.tensordot(hidden, kernel, 1, preferred_element_type=jnp.float32)


def token_logps(
    params: dict,
    cfg: DecoderConfig,
    hidden: jax.Array,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    block: int = 2048,
) -> jax.Array:
    """[B, T] float32 log p(token | what it may see); 0 where a token is not scored.

    The softmax is over the ids that the token's stream allows (`cfg.grammar`), or all.
    Scored tokens are gathered to the front of each row and scored `chunk` at a time;
    chunks that hold none are skipped. Logits exist for `chunk` tokens and `block` ids.
    """
    length = batch.tokens.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    order = jnp.argsort(~batch.scored, axis=1, stable=True)

    def front(x):
        x = jnp.take_along_axis(x, order, axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)))
        return rearrange(x, "b (n c) -> n b c", c=chunk)

    source, target, scored = map(front, (batch.source, batch.tokens, batch.scored))
    bounds = front(batch.stream) if cfg.grammar else None
    ranges = jnp.array(cfg.grammar.ranges if cfg.grammar else [], jnp.int32)
    rows = lm_kernel(params, cfg).T.astype(hidden.dtype)

    def score(states, target, stream):
        flat = rearrange(states, "b c d -> (b c) d")
        allowed = None if stream is None else ranges[stream.reshape(-1)]
        if temperature != 1:
            flat = flat / temperature
        return logps_of(flat, rows, target.reshape(-1), allowed, block).reshape(
            target.shape
        )

    def body(_, item):
        source, target, scored, stream = item
        states = jnp.take_along_axis(hidden, source[..., None], axis=1)
        out = jax.lax.cond(
            jnp.any(scored),
            score,
            lambda states, target, stream: jnp.zeros(target.shape, jnp.float32),
            states,
            target,
            stream,
        )
        return None, jnp.where(scored, out, 0.0)

    source = jnp.maximum(source, 0)
    _, logps = jax.lax.scan(body, None, (source, target, scored, bounds))
    logps = rearrange(logps, "n b c -> b (n c)")[:, :length]
    return jnp.take_along_axis(logps, jnp.argsort(order, axis=1), axis=1)


def scores(params: dict, hidden: jax.Array) -> jax.Array:
    """[B, T] float32: the scalar head at every token; algorithms pick where to read."""
    kernel = params["heads"]["score"]["kernel"].astype(hidden.dtype)
    return jnp.tensordot(hidden, kernel, 1, preferred_element_type=jnp.float32)[..., 0]
