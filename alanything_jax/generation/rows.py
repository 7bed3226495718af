"""The rows that are decoded together, on the device: each function compiled per shape."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alanything_jax.generation.sampler import Sampling, sample
from alanything_jax.models import cache as caches
from alanything_jax.models import decoder, grammar, heads
from alanything_jax.models.cache import Cache
from alanything_jax.models.config import DecoderConfig

# Tokens decoded between two looks at the host: few enough to stream, enough to not wait.
CHUNK = 8


@flax.struct.dataclass
class Rows:
    """Where B rows stand.

    Attributes:
      hidden: [B, D], the state that predicts each row's next token.
      key: [B] typed keys, of which token n is drawn with `fold_in(key, n)`.
      said: [B] int32, how many tokens that is so far.
      state: where each row stands in the grammar; None without one.
      seen: [B, V] bool, tokens to penalise; None where none are.
    """

    hidden: jax.Array
    cache: Cache
    key: jax.Array
    said: jax.Array
    state: grammar.State | None
    seen: jax.Array | None

    @property
    def room(self) -> int:
        """Tokens that a row's cache can hold."""
        return jax.tree.leaves(self.cache.k)[0].shape[-1]


def unstacks() -> bool:
    """Whether layers are written out (`cache.unstack`): where a scan copies weights."""
    return jax.default_backend() == "cpu"


@functools.partial(jax.jit, static_argnames="cfg")
def unstacked(params: Any, cfg: DecoderConfig, lora: Any) -> tuple[Any, Any]:
    """What `decode` reads of parameters and adapter, where layers are written out.

    A copy of them, and of a tied head as [D, V].
    """
    out = dict(params, layers=caches.unstack(params["layers"]))
    out["head"] = heads.lm_kernel(params, cfg)
    if lora is not None:
        lora = dict(lora, layers=caches.unstack(lora["layers"]))
    return out, lora


@functools.partial(jax.jit, static_argnames=("cfg", "sampling", "lora_scale"))
def prefill(
    params: Any,
    cfg: DecoderConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    prompt: Any,
    sampling: Sampling,
    lora: Any,
    lora_scale: float,
) -> Rows:
    """Read prompts [P, S] padded on the right, `lengths` [P]: rows without keys.

    `prompt` is a `Batch` of the same rows, where there are media for encoders.
    """
    count, width = tokens.shape
    # Of bfloat16 XLA for CPU is fast at products with kernels alone.
    table = params["embed"]["text"]["table"]
    dtype = jnp.float32 if unstacks() else table.dtype
    hidden, cache = decoder.step(
        params,
        cfg,
        tokens,
        decoder.init_cache(cfg, count, width, dtype),
        num_new=lengths,
        prompt=prompt,
        lora=lora,
        lora_scale=lora_scale,
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    ends = jnp.take_along_axis(tokens, (lengths - 1)[:, None], axis=1)[:, 0]
    seen = None
    if sampling.repetition_penalty != 1:
        here = jnp.where(jnp.arange(width) < lengths[:, None], tokens, cfg.vocab_size)
        seen = jnp.zeros((count, cfg.vocab_size), bool)
        seen = seen.at[jnp.arange(count)[:, None], here].set(True, mode="drop")
    return Rows(
        last.astype(table.dtype),
        cache,
        jax.random.split(jax.random.key(0), count),
        jnp.zeros((count,), jnp.int32),
        grammar.after(cfg.grammar, ends) if cfg.grammar else None,
        seen,
    )


@functools.partial(jax.jit, static_argnames=("count", "room", "written_out"))
def empty(like: Rows, count: int, room: int, written_out: bool) -> Rows:
    """`count` rows with caches of `room` tokens, to be filled with rows `like` these."""

    def wide(x, axis, tokens=None):
        shape = list(x.shape)
        shape[axis] = count
        if tokens is not None:
            shape[tokens] = room
        return jnp.zeros(shape, x.dtype)

    k, v = wide(like.cache.k, 1, -1), wide(like.cache.v, 1, -2)
    if written_out:
        k, v = caches.unstack(k), caches.unstack(v)
    lengths = jnp.zeros((count,), jnp.int32)
    keys = jax.random.split(jax.random.key(0), count)
    rest = like.replace(cache=None, key=None)
    rest = jax.tree.map(lambda x: wide(x, 0), rest)
    return rest.replace(cache=Cache(k, v, lengths, lengths), key=keys)


@functools.partial(jax.jit, donate_argnames="rows")
def fill(
    rows: Rows, new: Rows, at: jax.Array, source: jax.Array, number: jax.Array, seed
) -> Rows:
    """Rows with some replaced.

    Args:
      new: of `prefill`. at: [R], which rows to replace; those past the end are dropped.
      source: [R], by which of the new ones.
      number: [R], which numbers the rows have: row n's randomness is (seed, n)'s.
    """

    def put(old, x, width=()):
        where = (..., at, slice(None), *width) if width else at
        x = jnp.take(x, source, axis=-4 if width else 0).astype(old.dtype)
        return old.at[where].set(x, mode="drop")

    def stores(old, x, width):
        if isinstance(old, tuple):
            return tuple(put(o, y, width) for o, y in zip(old, x, strict=True))
        return put(old, x, width)

    size, every = slice(0, new.cache.k.shape[-1]), slice(None)
    cache = Cache(
        stores(rows.cache.k, new.cache.k, (every, size)),
        stores(rows.cache.v, new.cache.v, (size, every)),
        put(rows.cache.length, new.cache.length),
        put(rows.cache.ahead, new.cache.ahead),
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(number)
    rest = jax.tree.map(
        put, rows.replace(cache=None, key=None), new.replace(cache=None, key=None)
    )
    return rest.replace(cache=cache, key=rows.key.at[at].set(keys, mode="drop"))


@jax.jit
def pick(rows: Rows, at: jax.Array) -> Rows:
    """Rows `at` [R] alone."""

    def take(tree, axis=0):
        return jax.tree.map(lambda x: jnp.take(x, at, axis=axis), tree)

    cache = rows.cache
    cache = Cache(
        take(cache.k, -4), take(cache.v, -4), take(cache.length), take(cache.ahead)
    )
    return take(rows.replace(cache=None)).replace(cache=cache)


@functools.partial(jax.jit, static_argnames="room")
def resize(rows: Rows, room: int) -> Rows:
    """The same rows with caches of `room` tokens: longer, or empty ends cut off."""

    def change(x, axis):
        more = room - x.shape[axis]
        if more < 0:
            return jax.lax.slice_in_dim(x, 0, room, axis=axis % x.ndim)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, more)
        return jnp.pad(x, widths)

    k = jax.tree.map(lambda x: change(x, -1), rows.cache.k)
    v = jax.tree.map(lambda x: change(x, -2), rows.cache.v)
    return rows.replace(cache=rows.cache.replace(k=k, v=v))


@functools.partial(
    jax.jit, static_argnames=("cfg", "sampling", "lora_scale"), donate_argnames="rows"
)
def decode(
    params: Any,
    cfg: DecoderConfig,
    rows: Rows,
    sampling: Sampling,
    lora: Any,
    lora_scale: float,
) -> tuple[jax.Array, jax.Array, Rows]:
    """`CHUNK` more tokens of every row, whose caches have room for them.

    A row that is over goes on, into nothing: the host does not look at it.

    Returns:
      tokens and log-probs [CHUNK, B], and the rows.
    """
    cache, every = rows.cache, jnp.arange(len(rows.said))

    def body(carry, _):
        hidden, recent, said, state, seen = carry
        if "head" in params:
            head = params["head"]
            logits = jnp.dot(hidden, head, preferred_element_type=jnp.float32)
        else:
            logits = heads.logits(params, cfg, hidden)
        keys = jax.vmap(jax.random.fold_in)(rows.key, said)
        allowed = grammar.allowed(cfg.grammar, state) if cfg.grammar else None
        tokens, logps = sample(logits, keys, sampling, allowed, seen)
        if cfg.grammar:
            state = grammar.advance(cfg.grammar, state, tokens)
        if seen is not None:
            seen = seen.at[every, tokens].set(True)
        hidden, recent = decoder.append(
            params, cfg, tokens, cache, recent, lora=lora, lora_scale=lora_scale
        )
        hidden = hidden.astype(rows.hidden.dtype)
        return (hidden, recent, said + 1, state, seen), (tokens, logps)

    recent = caches.init_recent(cache, CHUNK)
    (hidden, recent, said, state, seen), (tokens, logps) = jax.lax.scan(
        body,
        (rows.hidden, recent, rows.said, rows.state, rows.seen),
        None,
        length=CHUNK,
    )
    cache = caches.settle(cache, recent)
    return tokens, logps, Rows(hidden, cache, rows.key, said, state, seen)
