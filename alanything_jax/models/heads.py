"""Heads: what a role reads from hidden states. Never `[B, T, V]` in training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models.config import DecoderConfig
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
    chunk: int = 256,
) -> jax.Array:
    """[B, T] float32 log p(token | what it may see); 0 where a token is not scored.

    The softmax is over the ids that the token's stream allows (`cfg.grammar`), or all.
    Scored tokens are gathered to the front of each row and scored `chunk` at a time;
    chunks that hold none are skipped, and no logits are kept for the backward pass.
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
    kernel = lm_kernel(params, cfg).astype(hidden.dtype)

    def score(states, target, stream):
        flat = rearrange(states, "b c d -> (b c) d")
        allowed = None if stream is None else ranges[stream.reshape(-1)]
        out = _logps(flat, kernel, target.reshape(-1), allowed, temperature)
        return out.reshape(target.shape)

    def body(_, block):
        source, target, scored, stream = block
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _logps(states, kernel, target, allowed, temperature):
    """log p of each target: states [n, D], kernel [D, V], target [n] -> [n] float32.

    `allowed` [n, 2] holds the first id and one past the last; None allows all.
    """
    return _picked(states, kernel, target, allowed, temperature)[0]


def masked_logits(z: jax.Array, first: jax.Array, end: jax.Array) -> jax.Array:
    """Logits [n, V], -inf outside ids first .. end - 1, both [n]."""
    ids = jnp.arange(z.shape[-1])
    return jnp.where((ids >= first[:, None]) & (ids < end[:, None]), z, -jnp.inf)


def _logits(states, kernel, allowed, temperature):
    z = jnp.dot(states, kernel, preferred_element_type=jnp.float32) / temperature
    return z if allowed is None else masked_logits(z, allowed[:, 0], allowed[:, 1])


def _picked(states, kernel, target, allowed, temperature):
    """Log-probs of the targets, the logits they come from, and their logsumexp."""
    z = _logits(states, kernel, allowed, temperature)
    lse = jax.nn.logsumexp(z, axis=-1)
    return jnp.take_along_axis(z, target[:, None], axis=-1)[:, 0] - lse, z, lse


def _logps_forward(states, kernel, target, allowed, temperature):
    """A frozen kernel needs no second look at the logits: the gradient of each log-prob
    by its state, [n, D], is made here and only scaled later."""
    learnt = kernel.perturbed
    states, kernel, target = states.value, kernel.value, target.value
    allowed = None if allowed is None else allowed.value
    out, z, lse = _picked(states, kernel, target, allowed, temperature)
    if learnt:
        return out, (states, kernel, target, allowed, lse, None)
    weights = jnp.exp(z - lse[:, None]).astype(states.dtype)
    slope = jnp.take(kernel, target, axis=1).T - weights @ kernel.T
    return out, (None, None, None, None, None, slope / temperature)


def _logps_backward(temperature, saved, grad):
    states, kernel, target, allowed, lse, slope = saved
    if slope is not None:
        return grad[:, None].astype(slope.dtype) * slope, None, None, None
    z = _logits(states, kernel, allowed, temperature)
    hit = jnp.arange(z.shape[1]) == target[:, None]
    dz = grad[:, None] / temperature * (hit - jnp.exp(z - lse[:, None]))
    dz = dz.astype(states.dtype)
    return dz @ kernel.T, states.T @ dz, None, None


_logps.defvjp(_logps_forward, _logps_backward, symbolic_zeros=True)


def scores(params: dict, hidden: jax.Array) -> jax.Array:
    """[B, T] float32: the scalar head at every token; algorithms pick where to read."""
    kernel = params["heads"]["score"]["kernel"].astype(hidden.dtype)
    return jnp.tensordot(hidden, kernel, 1, preferred_element_type=jnp.float32)[..., 0]
