"""Log-probabilities of given tokens, vocabulary block by block; the logits never exist.

As in FlashAttention a running maximum and sum make the softmax exact. Beside them runs
the mean of the head's rows under the softmax, so that the gradient by the states is

    d log p(t) / d state = row_t - sum_v p(v) row_v

without a second pass; only a learnt head is visited again, for its own gradient. Blocks
of the vocabulary, not of tokens, keep that gradient from being added up many times.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

# Of what cannot be: finite, so that differences of it have gradients.
LEAST = -1e30


def masked_logits(
    z: jax.Array, first: jax.Array, end: jax.Array, start: int = 0
) -> jax.Array:
    """Logits [n, V] of ids start, start + 1, ...; -inf outside first .. end - 1, [n].

    A first past the end goes round: -inf on end .. first - 1.
    """
    ids = start + jnp.arange(z.shape[-1])
    first, end = first[:, None], end[:, None]
    low, high = ids >= first, ids < end
    return jnp.where(jnp.where(first > end, low | high, low & high), z, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def logps_of(
    states: jax.Array,
    rows: jax.Array,
    target: jax.Array,
    allowed: jax.Array | None,
    block: int,
) -> jax.Array:
    """log p of each target under `softmax(states @ rows.T)`, [n] float32.

    Args:
      states: [n, D], divided by the temperature. rows: [V, D], the head.
      target: [n] int32. allowed: [n, 2], first id and one past the last; None = all.
      block: ids looked at together.
    """
    return _forward(states, rows, target, allowed, block, False)[0]


def _logits(states, some, start, allowed):
    z = jax.lax.dot_general(
        states, some, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    if allowed is None:
        return z
    return masked_logits(z, allowed[:, 0], allowed[:, 1], start)


def _visit(rows, block, body, carry):
    """Scan blocks of rows, (start, [block, D]), then what is left of them."""
    block = min(block, len(rows))
    full, width = len(rows) // block, rows.shape[1]
    main = rows[: full * block].reshape(full, block, width)
    carry, made = jax.lax.scan(body, carry, (jnp.arange(full) * block, main))
    made = None if made is None else made.reshape(full * block, width)
    if full * block < len(rows):
        carry, last = body(carry, (full * block, rows[full * block :]))
        made = None if made is None else jnp.concatenate([made, last])
    return carry, made


def _forward(states, rows, target, allowed, block, wants_mean):
    """Log-probs, their logsumexp, and the mean row under the softmax, if wanted."""

    def body(carry, item):
        top, total, mean = carry
        start, some = item
        z = _logits(states, some, start, allowed)
        new_top = jnp.maximum(top, jnp.max(z, axis=-1))
        safe = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
        weights = jnp.exp(z - safe[:, None])
        decay = jnp.exp(top - safe)
        total = total * decay + jnp.sum(weights, axis=-1)
        if wants_mean:
            part = jnp.dot(
                weights.astype(some.dtype), some, preferred_element_type=jnp.float32
            )
            mean = mean * decay[:, None] + part
        return (new_top, total, mean), None

    size = states.shape[:1]
    zero = jnp.zeros(size, jnp.float32)
    mean = jnp.zeros(states.shape if wants_mean else (), jnp.float32)
    carry = (jnp.full(size, -jnp.inf, jnp.float32), zero, mean)
    (top, total, mean), _ = _visit(rows, block, body, carry)
    lse = top + jnp.log(total)
    picked = jnp.take(rows, target, axis=0).astype(jnp.float32)
    picked = jnp.sum(states.astype(jnp.float32) * picked, axis=-1)
    return picked - lse, lse, mean / total[:, None] if wants_mean else None


def _save(states, rows, target, allowed, block):
    learnt = rows.perturbed
    states, rows, target = states.value, rows.value, target.value
    allowed = None if allowed is None else allowed.value
    out, lse, mean = _forward(states, rows, target, allowed, block, True)
    slope = (jnp.take(rows, target, axis=0) - mean).astype(states.dtype)
    return out, (slope, (states, rows, target, allowed, lse) if learnt else None)


def _backward(block, saved, grad):
    slope, again = saved
    by_states = grad[:, None].astype(slope.dtype) * slope
    if again is None:
        return by_states, None, None, None
    states, rows, target, allowed, lse = again

    def body(_, item):
        start, some = item
        z = _logits(states, some, start, allowed)
        dz = -grad[:, None] * jnp.exp(z - lse[:, None])
        return None, jax.lax.dot_general(
            dz.astype(states.dtype), states, (((0,), (0,)), ((), ()))
        )

    _, by_rows = _visit(rows, block, body, None)
    by_rows = by_rows.at[target].add((grad[:, None] * states).astype(by_rows.dtype))
    return by_states, by_rows.astype(rows.dtype), None, None


logps_of.defvjp(_save, _backward, symbolic_zeros=True)


def logps_at(
    states: jax.Array,
    rows: jax.Array,
    target: jax.Array,
    ids: jax.Array,
    allowed: jax.Array | None,
    temperatures: tuple[float, float],
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """log p of each target, [n]; of each id, then of all other ids together, [n, k + 1].

    Args:
      states, rows, target, allowed, block: as of `logps_of`, but for the temperature.
      ids: [n, k] int32, of each row distinct; ids past the vocabulary have p = 0.
      temperatures: of the target's softmax, and of the ids'.
    """
    own, spread = temperatures
    line = jnp.arange(len(states))[:, None]

    # Logits of a block are made again for the gradient, not kept.
    @jax.checkpoint
    def body(carry, item):
        whole, others, said, picked = carry
        start, some = item
        z = jnp.maximum(_logits(states, some, start, allowed), LEAST)
        whole = jnp.logaddexp(whole, logsumexp(z / own, axis=-1))
        said = _pick(z, target[:, None], start, said)
        picked = _pick(z, ids, start, picked)
        # Below 0 an index would count from the end.
        place = jnp.where(ids >= start, ids - start, len(some))
        rest = z.at[line, place].set(LEAST, mode="drop")
        others = jnp.logaddexp(others, logsumexp(rest / spread, axis=-1))
        return (whole, others, said, picked), None

    least = jnp.full((len(states), 1), LEAST, jnp.float32)
    carry = (least[:, 0], least[:, 0], least, jnp.broadcast_to(least, ids.shape))
    (whole, others, said, picked), _ = _visit(rows, block, body, carry)
    return said[:, 0] / own - whole, _shares(picked / spread, others)


def top_of(
    states: jax.Array,
    rows: jax.Array,
    allowed: jax.Array | None,
    k: int,
    temperature: float,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """The k likeliest ids, [n, k], and their log-probs as `logps_at` has them, [n, k + 1].

    Where fewer are allowed, the others have p = 0, and may lie past the vocabulary.
    """
    line = jnp.arange(len(states))[:, None]

    def body(carry, item):
        top, ids, others = carry
        start, some = item
        z = jnp.maximum(_logits(states, some, start, allowed), LEAST)
        both = jnp.concatenate([top, z], axis=1)
        new = jnp.broadcast_to(start + jnp.arange(len(some)), z.shape)
        top, place = jax.lax.top_k(both, k)
        ids = jnp.take_along_axis(jnp.concatenate([ids, new], axis=1), place, axis=1)
        rest = both.at[line, place].set(LEAST)
        others = jnp.logaddexp(others, logsumexp(rest / temperature, axis=-1))
        return (top, ids, others), None

    shape = (len(states), k)
    carry = (
        jnp.full(shape, LEAST, jnp.float32),
        jnp.full(shape, len(rows), jnp.int32),
        jnp.full(shape[:1], LEAST, jnp.float32),
    )
    (top, ids, others), _ = _visit(rows, block, body, carry)
    return ids, _shares(top / temperature, others)


def _pick(z, ids, start, picked):
    """Logits [n, k] of the ids that lie in this block, what was picked of others."""
    place = ids - start
    here = (place >= 0) & (place < z.shape[1])
    place = jnp.clip(place, 0, z.shape[1] - 1)
    return jnp.where(here, jnp.take_along_axis(z, place, axis=1), picked)


def _shares(picked, others):
    """Logits [n, k], and the logsumexp of all others, [n] -> log-probs [n, k + 1]."""
    every = jnp.concatenate([picked, others[:, None]], axis=1)
    return every - logsumexp(every, axis=1, keepdims=True)
