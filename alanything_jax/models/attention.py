"""Attention under the group rule, and the one place that picks a kernel.

The rule (schema.Batch): q sees k iff both are of one group, branch[k] is 0 or
branch[q], and index[k] <= index[q] or both are of one two-way span; in a sliding layer
index[q] - index[k] < window. Rows may hold tokens in any order.
"""

from __future__ import annotations

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from alanything_jax.models import blockwise, flash, fused
from alanything_jax.schema import Batch
from alanything_jax.sharding.rules import Rules, axes_of

BACKENDS = ("dense", "blockwise", "flash", "cudnn")


@flax.struct.dataclass
class Rows:
    """What the rule reads of each token; every field [B, T] int32."""

    group: jax.Array
    branch: jax.Array
    index: jax.Array
    span: jax.Array


def rows_of(batch: Batch) -> Rows:
    """The four vectors of a batch that decide who sees whom."""
    return Rows(batch.group, batch.branch, batch.index, batch.span)


def visible(q: Rows, k: Rows, window: jax.Array | int | None = None) -> jax.Array:
    """[B, Tq, Tk] bool: the rule. Padding (group 0) sees nothing."""

    def pair(name):
        return getattr(q, name)[..., :, None], getattr(k, name)[..., None, :]

    (qg, kg), (qb, kb), (qi, ki), (qs, ks) = map(
        pair, ("group", "branch", "index", "span")
    )
    same = (qg == kg) & (qg > 0) & ((kb == 0) | (kb == qb))
    seen = (ki <= qi) | ((qs == ks) & (qs > 0))
    if window is not None:
        seen &= qi - ki < window
    return same & seen


def dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """The reference: all scores, softmax in float32, rows that see nothing give zero.

    q [B, Tq, N, H], k and v [B, Tk, K, H], mask [B, Tq, Tk]. Returns [B, Tq, N, H].
    """
    heads = k.shape[2]
    q = rearrange(q, "b t (k g) h -> b k g t h", k=heads)
    scores = jnp.einsum("bkgth,bskh->bkgts", q, k).astype(jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5)
    mask = mask[:, None, None]
    scores = jnp.where(mask, scores, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0)).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->bkgth", weights, v)
    return rearrange(out, "b k g t h -> b t (k g) h")


def plan(rows: Rows, window: int | None, backend: str, block: int):
    """What a backend needs to know of a batch's mask, made once for all layers.

    `flash` is the fused kernel of the device: a TPU's here, cuDNN's on NVIDIA cards.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: choose one of {BACKENDS}.")
    if backend == "flash" and jax.default_backend() == "gpu":
        backend = "cudnn"
    mask = visible(rows, rows, window)
    if backend == "dense":
        return mask
    if backend == "blockwise":
        return blockwise.plan(mask, block)
    if backend == "cudnn":
        return fused.plan(mask)
    ids = jnp.stack([rows.group, rows.branch, rows.index, rows.span], axis=1)
    return flash.plan(ids, mask, window, block)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, planned, rules: Rules | None = None
) -> jax.Array:
    """Attention of a row with itself, by the backend that `plan` prepared.

    On a mesh every device does its own rows and heads. Where rows are cut along their
    length, heads are dealt out instead while attention runs, so that each device sees
    whole rows (two all-to-alls, DeepSpeed-Ulysses, arXiv:2309.14509).

    q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or mesh.size == 1:
        return _attend(q, k, v, planned)
    batch, length, heads = (axes_of(a, rules) for a in ("batch", "length", "heads"))
    ways = math.prod(mesh.shape[axis] for axis in length)
    cut = ways * math.prod(mesh.shape[axis] for axis in heads)
    if k.shape[2] % cut:
        raise ValueError(
            f"{k.shape[2]} key heads cannot be dealt out evenly over the {cut} devices of "
            f"mesh axes {'+'.join((*heads, *length))}: lower one of these axes to a "
            f"divisor of {k.shape[2]}."
        )
    if q.shape[1] % ways:
        raise ValueError(
            f"rows of {q.shape[1]} tokens cannot be cut evenly by the {ways} devices of "
            f"mesh axis {'+'.join(length)}: make row_tokens a multiple of {ways}."
        )
    tokens = PartitionSpec(batch, length or None, heads or None)
    whole = jax.tree.map(
        lambda x: PartitionSpec(batch if x.ndim > 1 else None), planned
    )

    def local(q, k, v, planned):
        if ways == 1:
            return _attend(q, k, v, planned)
        deal = functools.partial(jax.lax.all_to_all, axis_name=length, tiled=True)
        q, k, v = (deal(x, split_axis=2, concat_axis=1) for x in (q, k, v))
        return deal(_attend(q, k, v, planned), split_axis=1, concat_axis=2)

    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, whole),
        out_specs=tokens,
        # The kernels say nothing of how their results vary over the mesh.
        check_vma=False,
    )(q, k, v, planned)


def _attend(q, k, v, planned):
    if isinstance(planned, flash.Plan):
        return flash.attend(q, k, v, planned)
    if isinstance(planned, blockwise.Plan):
        return blockwise.attend(q, k, v, planned)
    if isinstance(planned, fused.Plan):
        return fused.attend(q, k, v, planned)
    return dense(q, k, v, planned)
