"""Mixture of experts, dropless: tokens sorted by expert, one ragged product for all.

Shazeer et al. 2017 (arXiv:1701.06538): each token goes through its `active` likeliest
experts, weighted by the router's softmax. No expert has a capacity, so no token is lost.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.params import ParamSpec


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


def mlp(x: jax.Array, p: dict[str, Any], cfg: DecoderConfig) -> jax.Array:
    """x [B, T, D] -> [B, T, D]: gated feed-forwards of each token's experts, summed."""
    flat = rearrange(x, "b t d -> (b t) d")
    experts, weights = route(flat, p["router"]["kernel"].astype(x.dtype), cfg)
    k = cfg.moe.active
    order = jnp.argsort(experts.reshape(-1), stable=True)
    sizes = jnp.bincount(experts.reshape(-1), length=cfg.moe.experts)
    rows = jnp.take(flat, order // k, axis=0)

    def product(rows, name):
        kernel = p[name]["kernel"].astype(x.dtype)
        return jax.lax.ragged_dot(rows, kernel, sizes.astype(jnp.int32))

    inner = jax.nn.silu(product(rows, "gate")) * product(rows, "up")
    out = product(inner, "down") * weights.reshape(-1)[order, None].astype(x.dtype)
    summed = jnp.zeros_like(flat).at[order // k].add(out)
    return summed.reshape(x.shape)
