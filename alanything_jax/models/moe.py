"""Mixture of experts, dropless: tokens sorted by expert, one ragged product for all.

Shazeer et al. 2017 (arXiv:1701.06538): each token goes through its `active` likeliest
experts, weighted by the router's softmax. No expert has a capacity, so no token is lost.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from alanything_jax.models import quant
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.params import ParamSpec
from alanything_jax.sharding.rules import Rules, axes_of


def specs(cfg: DecoderConfig) -> dict[str, Any]:
    """The declaration of router and experts, stacked over layers."""
    L, D, E, F = cfg.num_layers, cfg.width, cfg.moe.experts, cfg.moe.width
    outward = ("layers", "expert", "embed", "mlp")
    inward = ("layers", "expert", "mlp", "embed")
    return {
        "router": {
            "kernel": ParamSpec((L, D, E), ("layers", "embed", None), "normal", D)
        },
        "gate": {"kernel": ParamSpec((L, E, D, F), outward, "normal", D)},
        "up": {"kernel": ParamSpec((L, E, D, F), outward, "normal", D)},
        "down": {"kernel": ParamSpec((L, E, F, D), inward, "normal", F)},
    }


def route(x: jax.Array, kernel: jax.Array, cfg: DecoderConfig):
    """Experts [n, k] of each token of x [n, D], and their weights [n, k] float32."""
    logits = jnp.dot(x, kernel, preferred_element_type=jnp.float32)
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), cfg.moe.active)
    if cfg.moe.normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return experts, weights


def mlp(
    x: jax.Array, p: dict[str, Any], cfg: DecoderConfig, rules: Rules | None = None
) -> jax.Array:
    """x [B, T, D] -> [B, T, D]: gated feed-forwards of each token's experts, summed.

    Where `rules` deal the experts out over a mesh axis, rows are dealt out over it too. Its
    devices then show each other their tokens, each does what falls to its experts, and the
    sums go back to where the rows are: whatever the router says, shapes stay and no token
    is dropped.

    Raises ValueError: the experts cannot be dealt out evenly.
    """
    router = p["router"]["kernel"].astype(x.dtype)
    kernels = [p[name] for name in ("gate", "up", "down")]
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or mesh.size == 1:
        return _experts(x, router, *kernels, cfg)
    axes, batch, length = (axes_of(n, rules) for n in ("expert", "batch", "length"))
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if cfg.moe.experts % ways:
        raise ValueError(
            f"{cfg.moe.experts} experts cannot be dealt out evenly over the {ways} devices "
            f"of mesh axis {'+'.join(axes)}: make it a divisor of {cfg.moe.experts}."
        )

    def local(x, router, *kernels):
        if ways == 1:
            return _experts(x, router, *kernels, cfg)
        first = jax.lax.axis_index(axes) * _number(kernels[0])
        rows = jax.lax.all_gather(x, axes, axis=0, tiled=True)
        out = _experts(rows, router, *kernels, cfg, first)
        return jax.lax.psum_scatter(out, axes, scatter_dimension=0, tiled=True)

    tokens = PartitionSpec(batch or None, length or None)
    dealt = PartitionSpec(axes or None)
    return jax.shard_map(
        local,
        in_specs=(tokens, PartitionSpec(), dealt, dealt, dealt),
        out_specs=tokens,
        # The ragged products say nothing of how their results vary over the mesh.
        check_vma=False,
    )(x, router, *kernels)


def _experts(x, router, gate, up, down, cfg, first=0):
    """What the experts `first`, `first` + 1, ... whose kernels are given add to x."""
    flat = rearrange(x, "b t d -> (b t) d")
    experts, weights = route(flat, router, cfg)
    here, k = _number(gate), cfg.moe.active
    # Tokens of other devices' experts come last, in no group, and are masked.
    number = experts.reshape(-1) - first
    number = jnp.where((number >= 0) & (number < here), number, here)
    order = jnp.argsort(number, stable=True)
    sizes = jnp.bincount(number, length=here).astype(jnp.int32)
    rows = jnp.take(flat, order // k, axis=0)
    inner = jax.nn.silu(quant.product(_ragged, rows, gate, sizes))
    inner = inner * quant.product(_ragged, rows, up, sizes)
    out = quant.product(_ragged, inner, down, sizes)
    weight = weights.reshape(-1)[order, None].astype(x.dtype)
    out = jnp.where((number[order] < here)[:, None], out * weight, 0)
    return jnp.zeros_like(flat).at[order // k].add(out).reshape(x.shape)


def _ragged(rows, kernel, sizes):
    return jax.lax.ragged_dot(rows, kernel.astype(rows.dtype), sizes)


def _number(p):
    """Of how many experts a kernel is."""
    return jax.tree.leaves(p)[0].shape[0]
