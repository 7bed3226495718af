"""The cache of keys and values that decoding reads, and attention over it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models.config import DecoderConfig


@flax.struct.dataclass
class Cache:
    """Keys and values of tokens already seen.

    Attributes:
      k: [L, B, K, H, Tmax]; or a tuple of L arrays [B, K, H, Tmax] (`unstack`).
      v: [L, B, K, Tmax, H], or a tuple.
      length: [B] int32, how many slots of each row are in use.
      ahead: [B] int32, by how much the next rotary position differs from `length`: media
        of M-RoPE families take fewer positions than slots.
    """

    k: Any
    v: Any
    length: jax.Array
    ahead: jax.Array


@flax.struct.dataclass
class Recent:
    """Tokens that every row got at the same time, since the cache was last written.

    Rows have unequal lengths, so to write each token into `Cache` is a scatter, and the
    whole cache travels through the loop over layers. Here it is one slice.

    Attributes:
      k, v: as in `Cache`, with C slots. count: [] int32, those in use.
    """

    k: Any
    v: Any
    count: jax.Array


def init_cache(
    cfg: DecoderConfig, batch_size: int, max_tokens: int, dtype: Any = jnp.float32
) -> Cache:
    """An empty cache for `batch_size` sequences of at most `max_tokens`."""
    L, K, H = cfg.num_layers, cfg.num_kv_heads, cfg.head_width
    return Cache(
        jnp.zeros((L, batch_size, K, H, max_tokens), dtype),
        jnp.zeros((L, batch_size, K, max_tokens, H), dtype),
        jnp.zeros((batch_size,), jnp.int32),
        jnp.zeros((batch_size,), jnp.int32),
    )


def unstack(tree: Any) -> tuple[Any, ...]:
    """A tree of stacked arrays [L, ...] -> a tuple of L trees.

    With parameters and cache so, `append` is written out layer by layer. XLA for CPU
    copies every layer's weights out of their stack at each step of a scan.
    """
    size = len(jax.tree.leaves(tree)[0])
    leaves = [[x[n] for x in jax.tree.leaves(tree)] for n in range(size)]
    return tuple(map(jax.tree.structure(tree).unflatten, leaves))


def init_recent(cache: Cache, size: int) -> Recent:
    """Room for `size` tokens a row."""
    k = jax.tree.map(lambda x: jnp.zeros_like(x[..., :size]), cache.k)
    v = jax.tree.map(lambda x: jnp.zeros_like(x[..., :size, :]), cache.v)
    return Recent(k, v, jnp.int32(0))


def settle(cache: Cache, recent: Recent) -> Cache:
    """The cache with `recent` behind each row's tokens; there must be room."""
    k, v = write((cache.k, cache.v), (recent.k, recent.v), cache.length)
    return Cache(k, v, cache.length + recent.count, cache.ahead)


def as_cached(k, v):
    """Keys and values [B, S, K, H] as they lie in a cache."""
    return rearrange(k, "b s k h -> b k h s"), rearrange(v, "b s k h -> b k s h")


def write(stores, new, at):
    """Keys and values with `new` ones from slot `at` [B] of each row on."""

    def rows(axis, store, x):
        def row(store, x, at):
            x = x.astype(store.dtype)
            return jax.lax.dynamic_update_slice_in_dim(store, x, at, axis)

        return jax.vmap(row, in_axes=(-4, -4, 0), out_axes=-4)(store, x, at)

    return tuple(
        jax.tree.map(functools.partial(rows, axis), store, x)
        for axis, store, x in zip((-1, -2), stores, new, strict=True)
    )


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table[ids] of a table [V, D], as bits, so without a gradient.

    In a loop XLA for CPU would make a float32 copy of the whole table of bfloat16.
    """
    bits = jax.lax.bitcast_convert_type(table, f"uint{8 * table.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jnp.take(bits, ids, axis=0), table.dtype)


def attend(
    q: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array, jax.Array]]
) -> jax.Array:
    """Softmax attention of q [B, S, N, H] over (k, v, mask) parts, k and v as cached.

    mask [B or 1, S or 1, T]; every query sees something. Returns [B, S, N, H].
    """
    heads, dtype = parts[0][0].shape[1], jnp.promote_types(q.dtype, parts[0][0].dtype)
    grouped = rearrange(q.astype(dtype), "b s (k g) h -> b k g s h", k=heads)
    scores = []
    for k, _, mask in parts:
        score = jnp.einsum("bkgsh,bkht->bkgst", grouped, k.astype(dtype))
        score = score.astype(jnp.float32) * q.shape[-1] ** -0.5
        scores.append(jnp.where(mask[:, None, None], score, -jnp.inf))
    peaks = (jnp.max(score, axis=-1, keepdims=True) for score in scores)
    peak = functools.reduce(jnp.maximum, peaks)
    weights = [jnp.exp(score - peak) for score in scores]
    total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
    out = sum(
        jnp.einsum("bkgst,bkth->bkgsh", (w / total).astype(dtype), v.astype(dtype))
        for w, (_, v, _) in zip(weights, parts, strict=True)
    )
    return rearrange(out.astype(q.dtype), "b k g s h -> b s (k g) h")
