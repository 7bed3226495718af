"""Heads: what a role reads from hidden states. Never `[B, T, V]` in training."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from alanything_jax.models import logps
from alanything_jax.models.config import DecoderConfig
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
    Logits exist for `chunk` tokens of each row and `block` ids at a time.
    Where `rules` cut rows along their length, see `_of_cut_rows`.
    """

    def read(states, rows, allowed, target):
        if temperature != 1:
            states = states / temperature
        return logps.logps_of(states, rows, target, allowed, block)

    rows = lm_kernel(params, cfg).T.astype(hidden.dtype)
    columns = (batch.tokens,)
    return _over_rows(read, cfg, batch, rows, hidden, columns, chunk, rules)


def logps_at(
    params: dict,
    cfg: DecoderConfig,
    hidden: jax.Array,
    batch: Batch,
    ids: jax.Array,
    *,
    temperature: float = 1.0,
    spread: float = 1.0,
    chunk: int = 512,
    block: int = 2048,
    rules: Rules | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`token_logps`, and what else might have stood there: ids [B, T, k] -> [B, T, k + 1].

    The latter are log-probs, at the temperature `spread`, of each id and, last, of all
    other ids together; 0 where a token is not scored.
    """

    def read(states, rows, allowed, target, ids):
        temperatures = (temperature, spread)
        return logps.logps_at(states, rows, target, ids, allowed, temperatures, block)

    rows = lm_kernel(params, cfg).T.astype(hidden.dtype)
    columns = (batch.tokens, ids)
    return _over_rows(read, cfg, batch, rows, hidden, columns, chunk, rules)


def top_logps(
    params: dict,
    cfg: DecoderConfig,
    hidden: jax.Array,
    batch: Batch,
    k: int,
    vocab_size: int,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    block: int = 2048,
    rules: Rules | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k likeliest ids below `vocab_size`, [B, T, k] int32; k = 0: all of them.

    Beside them their log-probs, [B, T, k + 1], as `logps_at` has them.
    """
    size = min(k or vocab_size, vocab_size)

    def read(states, rows, allowed):
        return logps.top_of(states, rows, allowed, size, temperature, block)

    rows = lm_kernel(params, cfg).T[:vocab_size].astype(hidden.dtype)
    return _over_rows(read, cfg, batch, rows, hidden, (), chunk, rules)


def _over_rows(read, cfg, batch, rows, hidden, columns, chunk, rules):
    """What `read` says of every scored token; 0 where a token is not scored.

    Args:
      read: hidden states [n, D] that predict n tokens, `rows`, bounds of the ids allowed,
        and each column [n, ...] -> an array [n, ...], or several.
      columns: [B, T, ...], what `read` needs of each token.
    """
    score = functools.partial(_row_chunks, read, cfg, chunk)
    length = axes_of("length", rules or {})
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in length)
    fields = (batch.source, batch.stream, *columns)
    if ways == 1:
        return score(rows, hidden, *fields)
    limit = min(hidden.shape[1], batch.num_responses + ways)
    # Compiled even where nothing else is: part of the mesh stays automatic in it.
    return jax.jit(
        jax.shard_map(
            functools.partial(_of_cut_rows, score, length, limit),
            in_specs=(
                PartitionSpec(),
                PartitionSpec(None, length),
                *[PartitionSpec()] * len(fields),
            ),
            out_specs=PartitionSpec(None, length),
            axis_names=set(length),
            check_vma=False,
        )
    )(rows, hidden, *fields)


def _of_cut_rows(score, axes, limit, rows, hidden, source, *columns):
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
    out = score(rows, states, local, *map(part, columns))
    enough = jnp.sum(away, axis=1) <= limit

    def known(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(_beside(enough, x), x, jnp.nan)

    return jax.tree.map(known, out)


def _beside(flags, x):
    """`flags` with as many dims as `x`, the last ones of size 1."""
    return flags.reshape(flags.shape + (1,) * (x.ndim - flags.ndim))


def _row_chunks(read, cfg, chunk, rows, hidden, source, stream, *columns):
    """As `_over_rows`; `source` are places in `hidden`, -1 = not scored.

    Scored tokens are gathered to the front of each row and read `chunk` at a time; chunks
    that hold none are skipped.
    """
    length = source.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    order = jnp.argsort(source < 0, axis=1, stable=True)

    def front(x):
        x = jnp.take_along_axis(x, _beside(order, x), axis=1)
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return rearrange(x, "b (n c) ... -> n b c ...", c=chunk)

    scored = front(source >= 0)
    source, columns = front(jnp.maximum(source, 0)), tuple(map(front, columns))
    bounds = front(stream) if cfg.grammar else None
    ranges = jnp.array(cfg.grammar.ranges if cfg.grammar else [], jnp.int32)

    def score(states, stream, *columns):
        flat = [rearrange(x, "b c ... -> (b c) ...") for x in (states, *columns)]
        allowed = None if stream is None else ranges[stream.reshape(-1)]
        out = read(flat[0], rows, allowed, *flat[1:])
        shape = states.shape[:2]
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), out)

    def body(_, item):
        source, scored, stream, columns = item
        states = jnp.take_along_axis(hidden, source[..., None], axis=1)
        found = jax.eval_shape(score, states, stream, *columns)
        out = jax.lax.cond(
            jnp.any(scored),
            score,
            lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found),
            states,
            stream,
            *columns,
        )
        return None, jax.tree.map(lambda x: jnp.where(_beside(scored, x), x, 0), out)

    _, out = jax.lax.scan(body, None, (source, scored, bounds, columns))
    back = jnp.argsort(order, axis=1)

    def unsorted(x):
        x = rearrange(x, "n b c ... -> b (n c) ...")[:, :length]
        return jnp.take_along_axis(x, _beside(back, x), axis=1)

    return jax.tree.map(unsorted, out)


def scores(params: dict, hidden: jax.Array) -> jax.Array:
    """[B, T] float32: the scalar head at every token; algorithms pick where to read."""
    kernel = params["heads"]["score"]["kernel"].astype(hidden.dtype)
    return jnp.tensordot(hidden, kernel, 1, preferred_element_type=jnp.float32)[..., 0]
