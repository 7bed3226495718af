"""Attention block by block, visiting only the blocks that the mask leaves something in.

Rabe & Staats 2021 (arXiv:2112.05682) and FlashAttention-2 (arXiv:2307.08691): a running
maximum and sum make the softmax exact without the [T, T] scores. Plain JAX, for
CPU and as the meeting point of hardware kernels. The visited blocks come from the mask
itself, so nothing is assumed of the order of tokens in a row.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

# Rematerialization that keeps matmuls keeps attention's results too, under this name.
SAVED = "attention"


@flax.struct.dataclass
class Plan:
    """Which key blocks each query block visits.

    Attributes:
      mask: [B, nq, nk, S, S] bool, the rule by blocks.
      visits: [B, nq, nk] int32, the visited key blocks first, in order.
      count: [B, nq] int32, how many are visited.
    """

    mask: jax.Array
    visits: jax.Array
    count: jax.Array


def cut(mask: jax.Array, block: int) -> jax.Array:
    """[B, T, T] -> [B, n, n, block, block]; T is padded up to a multiple of `block`."""
    padding = -mask.shape[1] % block
    mask = jnp.pad(mask, ((0, 0), (0, padding), (0, padding)))
    return rearrange(mask, "b (i s) (j z) -> b i j s z", s=block, z=block)


def visits(used: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the blocks [B, n, n] that hold something: the used first, in order; how many."""
    order = jnp.argsort(~used, axis=-1, stable=True).astype(jnp.int32)
    return order, jnp.sum(used, axis=-1, dtype=jnp.int32)


def plan(mask: jax.Array, block: int) -> Plan:
    """What `attend` needs of a [B, T, T] mask."""
    mask = cut(mask, block)
    return Plan(mask, *visits(jnp.any(mask, axis=(-1, -2))))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, planned: Plan) -> jax.Array:
    """q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H]."""
    length, heads, block = q.shape[1], k.shape[2], planned.mask.shape[-1]
    pad = [(0, 0), (0, -length % block), (0, 0), (0, 0)]
    q = rearrange(
        jnp.pad(q * q.shape[-1] ** -0.5, pad),
        "b (i s) (k g) h -> b i k (g s) h",
        s=block,
        k=heads,
    )
    k, v = (
        rearrange(jnp.pad(x, pad), "b (j s) k h -> b j k s h", s=block) for x in (k, v)
    )
    out = jax.lax.map(lambda row: _attend_row(*row), (q, k, v, planned))
    out = rearrange(out, "b i k (g s) h -> b (i s) (k g) h", s=block)
    return out[:, :length]


@jax.custom_vjp
def _attend_row(q, k, v, planned):
    """One row: q [I, K, gS, H], k and v [J, K, S, H] -> [I, K, gS, H]."""
    return _forward(q, k, v, planned)[0]


def _tile(x, mask):
    """The [S, S] mask for g query heads that share a key head: [gS, S]."""
    return jnp.tile(mask, (x.shape[-2] // mask.shape[-2], 1))


def _forward(q, k, v, planned):
    def one_block(block):
        q_i, mask_i, visits, count = block

        def visit(n, carry):
            top, total, acc = carry
            j = visits[n]
            scores = jnp.einsum("kth,ksh->kts", q_i, k[j]).astype(jnp.float32)
            scores = jnp.where(_tile(q_i, mask_i[j]), scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            safe = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
            weights = jnp.exp(scores - safe[..., None])
            decay = jnp.exp(top - safe)
            total = total * decay + jnp.sum(weights, axis=-1)
            acc = acc * decay[..., None] + jnp.einsum(
                "kts,ksh->kth", weights.astype(v.dtype), v[j]
            ).astype(jnp.float32)
            return new_top, total, acc

        empty = jnp.full(q_i.shape[:-1], -jnp.inf, jnp.float32)
        carry = (empty, jnp.zeros_like(empty), jnp.zeros(q_i.shape, jnp.float32))
        top, total, acc = jax.lax.fori_loop(0, count, visit, carry)
        safe = jnp.where(total > 0, total, 1.0)
        out = (acc / safe[..., None]).astype(q_i.dtype)
        # +inf for a query that sees nothing makes its recomputed weights zero.
        lse = jnp.where(total > 0, top + jnp.log(safe), jnp.inf)
        return out, lse

    return jax.lax.map(one_block, (q, planned.mask, planned.visits, planned.count))


def _save(q, k, v, planned):
    out, lse = (checkpoint_name(x, SAVED) for x in _forward(q, k, v, planned))
    return out, (q, k, v, planned, out, lse)


def _backward(saved, grad):
    q, k, v, planned, out, lse = saved
    delta = jnp.sum((grad * out).astype(jnp.float32), axis=-1)

    def one_block(carry, block):
        q_i, grad_i, lse_i, delta_i, mask_i, visits, count = block

        def visit(n, carry):
            dq, dk, dv = carry
            j = visits[n]
            scores = jnp.einsum("kth,ksh->kts", q_i, k[j]).astype(jnp.float32)
            weights = jnp.exp(scores - lse_i[..., None])
            weights = jnp.where(_tile(q_i, mask_i[j]), weights, 0.0)
            inner = jnp.einsum("kth,ksh->kts", grad_i, v[j]).astype(jnp.float32)
            inner = (weights * (inner - delta_i[..., None])).astype(q_i.dtype)
            dv_j = jnp.einsum("kts,kth->ksh", weights.astype(q_i.dtype), grad_i)
            dk_j = jnp.einsum("kts,kth->ksh", inner, q_i)
            dq = dq + jnp.einsum("kts,ksh->kth", inner, k[j]).astype(jnp.float32)
            return dq, dk.at[j].add(dk_j), dv.at[j].add(dv_j)

        zero = jnp.zeros(q_i.shape, jnp.float32)
        dq, *carry = jax.lax.fori_loop(0, count, visit, (zero, *carry))
        return tuple(carry), dq.astype(q_i.dtype)

    carry = (jnp.zeros_like(k), jnp.zeros_like(v))
    blocks = (q, grad, lse, delta, planned.mask, planned.visits, planned.count)
    (dk, dv), dq = jax.lax.scan(one_block, carry, blocks)
    return dq, dk, dv, jax.tree.map(_no_gradient, planned)


def _no_gradient(x):
    return np.zeros(x.shape, jax.dtypes.float0)


_attend_row.defvjp(_save, _backward)
