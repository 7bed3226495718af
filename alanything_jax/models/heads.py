"""Heads: what a role reads from hidden states. Never `[B, T, V]` in training."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.logps import logps_of
from alanything_jax.schema import Batch
from alanything_jax.sharding.rules import Rules, axes_of


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
    rules: Rules | None = None,
) -> jax.Array:
    """[B, T] float32 log p(token | what it may see); 0 where a token is not scored.

    The softmax is over the ids that the token's stream allows (`cfg.grammar`), or all.
    Scored tokens are gathered to the front of each row and scored `chunk` at a time;
    chunks that hold none are skipped. Logits exist for `chunk` tokens and `block` ids.
    Where `rules` cut rows along their length, see `_logps_of_cut_rows`.
    """
    rows = lm_kernel(params, cfg).T.astype(hidden.dtype)
    score = functools.partial(_row_logps, cfg, temperature, chunk, block)
    length = axes_of("length", rules or {})
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in length)
    fields = (batch.source, batch.tokens, batch.stream)
    if ways == 1:
        return score(rows, hidden, *fields)
    limit = min(hidden.shape[1], batch.num_responses + ways)
    # Compiled even where nothing else is: part of the mesh stays automatic in it.
    return jax.jit(
        jax.shard_map(
            functools.partial(_logps_of_cut_rows, score, length, limit),
            in_specs=(
                PartitionSpec(),
                PartitionSpec(None, length),
                *[PartitionSpec()] * 3,
            ),
            out_specs=PartitionSpec(None, length),
            axis_names=set(length),
            check_vma=False,
        )
    )(rows, hidden, *fields)


def _logps_of_cut_rows(score, axes, limit, rows, hidden, source, tokens, stream):
    """Of one device, which has `hidden` of its own part of each row, and all ids.

    A token's hidden state mostly lies beside it. What lies in another part is the end of
    a prompt, or the last token before a cut: those alone are exchanged, `limit` a row. Rows
    laid out so that more is needed give NaN, which stops a run.
    """
    width, length = hidden.shape[1], source.shape[1]
    place = jnp.arange(length)
    away = (source >= 0) & (source // width != place // width)
    wanted = jnp.sort(jnp.where(away, source, length), axis=1)[:, :limit]
    start = jax.lax.axis_index(axes) * width
    own = (wanted >= start) & (wanted < start + width)
    sent = jnp.clip(wanted - start, 0, width - 1)[..., None]
    sent = jnp.where(own[..., None], jnp.take_along_axis(hidden, sent, axis=1), 0)
    got = jax.lax.psum(sent, axes)

    def part(x):
        return jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)

    near = part(source)
    found = jax.vmap(jnp.searchsorted)(wanted, near)
    local = jnp.where(part(away), width + found, near - start)
    states = jnp.concatenate([hidden, got], axis=1)
    local = jnp.where(near >= 0, local, -1)
    logps = score(rows, states, local, part(tokens), part(stream))
    enough = jnp.sum(away, axis=1, keepdims=True) <= limit
    return jnp.where(enough, logps, jnp.nan)


def _row_logps(cfg, temperature, chunk, block, rows, hidden, source, tokens, stream):
    """[B, T] of `token_logps`; `source` are places in `hidden`, -1 = not scored."""
    length = tokens.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    order = jnp.argsort(source < 0, axis=1, stable=True)

    def front(x):
        x = jnp.take_along_axis(x, order, axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)))
        return rearrange(x, "b (n c) -> n b c", c=chunk)

    scored = front(source >= 0)
    source, target = front(jnp.maximum(source, 0)), front(tokens)
    bounds = front(stream) if cfg.grammar else None
    ranges = jnp.array(cfg.grammar.ranges if cfg.grammar else [], jnp.int32)

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

    _, logps = jax.lax.scan(body, None, (source, target, scored, bounds))
    logps = rearrange(logps, "n b c -> b (n c)")[:, :length]
    return jnp.take_along_axis(logps, jnp.argsort(order, axis=1), axis=1)


def scores(params: dict, hidden: jax.Array) -> jax.Array:
    """[B, T] float32: the scalar head at every token; algorithms pick where to read."""
    kernel = params["heads"]["score"]["kernel"].astype(hidden.dtype)
    return jnp.tensordot(hidden, kernel, 1, preferred_element_type=jnp.float32)[..., 0]
