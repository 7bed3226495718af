"""Attention under the group rule as Pallas kernels for TPU.

FlashAttention-2 (arXiv:2307.08691), with the rule computed inside from four vectors of
ids, so that no [T, T] mask exists, and with a list of the key blocks that the rule leaves
something in, so that the others are neither fetched nor computed. Scores lie transposed,
keys by queries, and so do queries, results and their gradients, [H, T]: what belongs to a
query is a row, no product needs a transpose, and a TPU's projections leave them so.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alanything_jax.models import blockwise

# Finite: -inf minus -inf would be no number, and Mosaic has no use for one.
LOW = -0.7 * float(np.finfo(np.float32).max)
# What a window of full layers is: no index is that far from another.
NO_WINDOW = 2**30


@flax.struct.dataclass
class Plan:
    """What the kernels need to know of a batch's mask, made once for all layers.

    Attributes:
      ids: [B, 4, T] int32: group, branch, index, span.
      window: [1] int32, how far back a query sees.
      keys: [B, n, n] int32, for each query block the visited key blocks first, in order;
        num_keys: [B, n], how many.
      queries, num_queries: the same for each key block.
    """

    ids: jax.Array
    window: jax.Array
    keys: jax.Array
    num_keys: jax.Array
    queries: jax.Array
    num_queries: jax.Array
    block: int = flax.struct.field(pytree_node=False)


def plan(ids: jax.Array, mask: jax.Array, window: int | None, block: int) -> Plan:
    """From the ids [B, 4, T] and the rule [B, T, T], of which only blocks are kept.

    Nothing asks for the whole mask at once: under `jit` it is reduced as it is made.
    """
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, -ids.shape[-1] % block)))
    used = jnp.any(blockwise.cut(mask, block), axis=(-1, -2))
    reach = jnp.full((1,), NO_WINDOW if window is None else window, jnp.int32)
    by_key = blockwise.visits(used.swapaxes(1, 2))
    return Plan(ids, reach, *blockwise.visits(used), *by_key, block)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, planned: Plan) -> jax.Array:
    """q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H]."""
    length = q.shape[1]
    pad = [(0, 0), (0, planned.ids.shape[-1] - length), (0, 0), (0, 0)]
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q, k, v = (jnp.pad(x, pad) for x in (q, k, v))
    q = rearrange(q, "b t n h -> b n h t")
    k, v = (rearrange(x, "b t n h -> b n t h") for x in (k, v))
    return rearrange(_attend(q, k, v, planned), "b n h t -> b t n h")[:, :length]


@jax.custom_vjp
def _attend(q, k, v, planned):
    return _forward(q, k, v, planned)[0]


def _visible(ids_q, ids_k, window):
    """[Sk, Sq] bool from [4, Sq] and [Sk, 4]: the rule of `attention.visible`."""
    (qg, qb, qi, qs), (kg, kb, ki, ks) = (
        (ids_q[n : n + 1] for n in range(4)),
        (ids_k[:, n : n + 1] for n in range(4)),
    )
    same = (qg == kg) & (qg > 0) & ((kb == 0) | (kb == qb))
    seen = (ki <= qi) | ((qs == ks) & (qs > 0))
    return same & seen & (qi - ki < window)


def _scores(q, k, ids_q, ids_k, window):
    """Scores [Sk, Sq] float32 and the mask."""
    return _dot(k, q, 1, 0), _visible(ids_q, ids_k, window)


def _dot(a, b, over_a, over_b):
    """Contract one dim of each, sums in float32."""
    return jax.lax.dot_general(
        a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32
    )


def _forward_kernel(
    visits, count, window, q, k, v, ids_q, ids_k, out, lse, top, total, acc
):
    b, i, n = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(n == 0)
    def _():
        top[...] = jnp.full_like(top, LOW)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(n < count[b, i])
    def _():
        s, mask = _scores(q[0, 0], k[0, 0], ids_q[0], ids_k[0], window[0])
        s = jnp.where(mask, s, LOW)
        peak = jnp.maximum(top[...], jnp.max(s, axis=0, keepdims=True))
        weights = jnp.where(mask, jnp.exp(s - peak), 0.0)
        decay = jnp.exp(top[...] - peak)
        total[...] = total[...] * decay + jnp.sum(weights, axis=0, keepdims=True)
        acc[...] = acc[...] * decay + _dot(v[0, 0], weights.astype(v.dtype), 0, 0)
        top[...] = peak

    @pl.when(n == pl.num_programs(3) - 1)
    def _():
        safe = jnp.where(total[...] > 0, total[...], 1.0)
        out[0, 0] = (acc[...] / safe).astype(out.dtype)
        # A query that sees nothing: so high that its recomputed weights are zero.
        lse[0, 0] = jnp.where(total[...] > 0, top[...] + jnp.log(safe), -LOW)


def _weights(q, k, ids_q, ids_k, window, lse):
    """The softmax [Sk, Sq], from the saved log-sum-exp [1, Sq]."""
    s, mask = _scores(q, k, ids_q, ids_k, window)
    return jnp.where(mask, jnp.exp(jnp.where(mask, s, LOW) - lse), 0.0)


def _by_query_kernel(
    visits, count, window, q, k, v, ids_q, ids_k, grad, lse, delta, dq, acc
):
    b, i, n = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(n == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

    @pl.when(n < count[b, i])
    def _():
        p = _weights(q[0, 0], k[0, 0], ids_q[0], ids_k[0], window[0], lse[0, 0])
        inner = p * (_dot(v[0, 0], grad[0, 0], 1, 0) - delta[0, 0])
        acc[...] += _dot(k[0, 0], inner.astype(k.dtype), 0, 0)

    @pl.when(n == pl.num_programs(3) - 1)
    def _():
        dq[0, 0] = acc[...].astype(dq.dtype)


def _by_key_kernel(
    visits,
    count,
    window,
    q,
    k,
    v,
    ids_q,
    ids_k,
    grad,
    lse,
    delta,
    dk,
    dv,
    k_acc,
    v_acc,
):
    b, j, h, n = (pl.program_id(axis) for axis in (0, 2, 3, 4))

    @pl.when((n == 0) & (h == 0))
    def _():
        k_acc[...] = jnp.zeros_like(k_acc)
        v_acc[...] = jnp.zeros_like(v_acc)

    @pl.when(n < count[b, j])
    def _():
        p = _weights(q[0, 0], k[0, 0], ids_q[0], ids_k[0], window[0], lse[0, 0])
        inner = p * (_dot(v[0, 0], grad[0, 0], 1, 0) - delta[0, 0])
        v_acc[...] += _dot(p.astype(q.dtype), grad[0, 0], 1, 1)
        k_acc[...] += _dot(inner.astype(q.dtype), q[0, 0], 1, 1)

    last = (n == pl.num_programs(4) - 1) & (h == pl.num_programs(3) - 1)

    @pl.when(last)
    def _():
        dk[0, 0] = k_acc[...].astype(dk.dtype)
        dv[0, 0] = v_acc[...].astype(dv.dtype)


def _call(kernel, grid, inputs, outputs, scratch, arguments, num_dots, name):
    """The kernel on TPU; elsewhere the same kernel interpreted, for tests."""
    (_, n, h, t), block = arguments[3].shape, inputs[0].block_shape[3]
    pairs = grid[0] * n * (t * (t + block) // 2)
    flops = 2 * num_dots * pairs * h
    moved = sum(x.size * x.dtype.itemsize for x in arguments)
    cost = pl.CostEstimate(flops=flops, transcendentals=pairs, bytes_accessed=moved)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=grid,
        in_specs=inputs,
        out_specs=[spec for spec, _ in outputs],
        scratch_shapes=scratch,
    )

    def call(*arguments, interpret):
        return pl.pallas_call(
            kernel,
            grid_spec=spec,
            out_shape=[shape for _, shape in outputs],
            cost_estimate=cost,
            interpret=interpret,
            name=name,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3)
            ),
        )(*arguments)

    return jax.lax.platform_dependent(
        *arguments,
        tpu=functools.partial(call, interpret=False),
        default=functools.partial(call, interpret=True),
    )


def _specs(block, width, at_query, at_key, heads):
    """Blocks of q, k, v and ids, given where a grid place finds its query and key."""
    query, key = heads
    keys = pl.BlockSpec((1, 1, block, width), lambda *g: (g[0], key(g), at_key(*g), 0))
    return [
        pl.BlockSpec(
            (1, 1, width, block), lambda *g: (g[0], query(g), 0, at_query(*g))
        ),
        keys,
        keys,
        pl.BlockSpec((1, 4, block), lambda *g: (g[0], 0, at_query(*g))),
        pl.BlockSpec((1, block, 4), lambda *g: (g[0], at_key(*g), 0)),
    ]


def _visited(b, own, n, visits, count):
    """The n-th block to visit; past the last one the same again, so nothing is fetched."""
    return visits[b, own, jnp.minimum(n, jnp.maximum(count[b, own] - 1, 0))]


def _query_major(q, k, planned):
    """Grid and blocks of the kernels that own a query block and visit keys."""
    (batch, n, width, length), block = q.shape, planned.block
    shared = n // k.shape[1]
    grid = (batch, n, length // block, length // block)
    specs = _specs(
        block,
        width,
        lambda b, h, i, n, *_: i,
        lambda b, h, i, n, visits, count, _: _visited(b, i, n, visits, count),
        (lambda g: g[1], lambda g: g[1] // shared),
    )
    row = pl.BlockSpec((1, 1, 1, block), lambda b, h, i, n, *_: (b, h, 0, i))
    return grid, specs, row


def _forward(q, k, v, planned):
    grid, specs, row = _query_major(q, k, planned)
    (batch, n, width, length), block = q.shape, planned.block
    arguments = (
        planned.keys,
        planned.num_keys,
        planned.window,
        q,
        k,
        v,
        planned.ids,
        planned.ids.swapaxes(1, 2),
    )
    lse = jax.ShapeDtypeStruct((batch, n, 1, length), jnp.float32)
    scratch = [
        pltpu.VMEM(shape, jnp.float32)
        for shape in ((1, block),) * 2 + ((width, block),)
    ]
    return _call(
        _forward_kernel,
        grid,
        specs,
        [(specs[0], jax.ShapeDtypeStruct(q.shape, q.dtype)), (row, lse)],
        scratch,
        arguments,
        2,
        "group_attention",
    )


def _save(q, k, v, planned):
    out, lse = (checkpoint_name(x, blockwise.SAVED) for x in _forward(q, k, v, planned))
    return out, (q, k, v, planned, out, lse)


def _backward(saved, grad):
    q, k, v, planned, out, lse = saved
    delta = jnp.sum((grad * out).astype(jnp.float32), axis=2, keepdims=True)
    (batch, n, width, length), heads, block = q.shape, k.shape[1], planned.block
    ids = (planned.ids, planned.ids.swapaxes(1, 2))
    common = (planned.window, q, k, v, *ids, grad, lse, delta)
    grid, specs, row = _query_major(q, k, planned)
    (dq,) = _call(
        _by_query_kernel,
        grid,
        [*specs, specs[0], row, row],
        [(specs[0], jax.ShapeDtypeStruct(q.shape, q.dtype))],
        [pltpu.VMEM((width, block), jnp.float32)],
        (planned.keys, planned.num_keys, *common),
        3,
        "group_attention_dq",
    )
    shared = n // heads

    def query(b, h, j, g, n, visits, count, _):
        return _visited(b, j, n, visits, count)

    specs = _specs(
        block,
        width,
        query,
        lambda b, h, j, *_: j,
        (lambda g: g[1] * shared + g[3], lambda g: g[1]),
    )
    row = pl.BlockSpec(
        (1, 1, 1, block), lambda *g: (g[0], g[1] * shared + g[3], 0, query(*g))
    )
    dk, dv = _call(
        _by_key_kernel,
        (batch, heads, length // block, shared, length // block),
        [*specs, specs[0], row, row],
        [(specs[1], jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in (k, v)],
        [pltpu.VMEM((block, width), jnp.float32)] * 2,
        (planned.queries, planned.num_queries, *common),
        4,
        "group_attention_dkv",
    )
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), planned)
    return dq, dk, dv, nothing


_attend.defvjp(_save, _backward)
