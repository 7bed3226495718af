"""CLIP's and SigLIP's vision transformer, and what brings its outputs to the decoder.

CLIP is arXiv:2103.00020, SigLIP arXiv:2303.15343; LLaVA's projector arXiv:2310.03744,
Gemma3's arXiv:2503.19786. Patches come as `data.preprocess.SquareVision` makes them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import reduce

from alanything_jax.models import layers
from alanything_jax.models.params import ParamSpec, Tree, layer_norm, linear


@dataclasses.dataclass(frozen=True)
class ViT:
    """One tower with its projector.

    Attributes:
      image_size, patch_size: pixels of a side.
      width, ffw_width, out_width: sizes D and F, and the decoder's D.
      placeholder: id of the tokens in whose places the outputs go.
      class_token: CLIP: a learned token before the patches, a norm before the layers, and
        no bias on patches. keep_class: it is an output, too.
      taps: after how many layers states are taken; those of several stand side by side.
        Empty = after all layers and a last norm.
      pool: pool x pool patches, which follow each other, are averaged to one output.
      qkv_bias: linear layers of queries, keys and values have biases.
      projector: "mlp": `projector_layers` linear layers, the activation between them;
        "norm": Gemma3's RMS norm and matrix.
    """

    image_size: int
    patch_size: int
    width: int
    ffw_width: int
    num_layers: int
    num_heads: int
    out_width: int
    placeholder: int
    norm_eps: float
    activation: str
    class_token: bool = False
    keep_class: bool = False
    taps: tuple[int, ...] = ()
    pool: int = 1
    qkv_bias: bool = True
    projector: Literal["mlp", "norm"] = "mlp"
    projector_layers: int = 2
    projector_bias: bool = True
    projector_activation: str = "gelu"
    name: str = "vision"

    @property
    def merge(self) -> int:
        """Patches that make one output."""
        return self.pool**2

    @property
    def align(self) -> int:
        """Whole outputs, and rows that a mesh can cut."""
        return math.lcm(self.merge, 8)

    @property
    def arrays(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """What a row holds of each patch."""
        size = 3 * self.patch_size**2
        return (("patches", (size,), "float32"), ("position", (), "int32"))


def specs(cfg: ViT) -> Tree:
    """The declaration of the tower's parameters."""
    L, D, F, N = cfg.num_layers, cfg.width, cfg.ffw_width, cfg.num_heads
    H, size = D // N, 3 * cfg.patch_size**2

    stacked = functools.partial(linear, lead=(L,))
    heads = stacked((D, N, H), ("embed", "heads", None), bias=cfg.qkv_bias)
    places = (cfg.image_size // cfg.patch_size) ** 2 + cfg.class_token
    out = {
        "patch": linear((size, D), (None, "embed"), bias=not cfg.class_token),
        "position": ParamSpec((places, D), (None, "embed"), "normal", D),
        "layers": {
            "attn_norm": layer_norm(D, (L,)),
            "mlp_norm": layer_norm(D, (L,)),
            "attn": {
                **{name: heads for name in ("q", "k", "v")},
                "o": stacked((N, H, D), ("heads", None, "embed"), 2),
            },
            "mlp": {
                "up": stacked((D, F), ("embed", "mlp")),
                "down": stacked((F, D), ("mlp", "embed")),
            },
        },
    }
    if cfg.class_token:
        out["class"] = ParamSpec((D,), ("embed",), "normal", D)
        out["pre_norm"] = layer_norm(D)
    if not cfg.taps:
        out["post_norm"] = layer_norm(D)
    wide = D * max(1, len(cfg.taps))
    if cfg.projector == "norm":
        out["projector"] = {
            "norm": {"scale": ParamSpec((wide,), ("embed",), "zeros")},
            "matrix": ParamSpec((wide, cfg.out_width), ("embed", None), "normal", wide),
        }
    else:
        out["projector"] = {
            str(n): linear(
                (cfg.out_width if n else wide, cfg.out_width),
                ("embed", None),
                bias=cfg.projector_bias,
            )
            for n in range(cfg.projector_layers)
        }
    return out


def encode(
    params: Tree, cfg: ViT, media: dict[str, jax.Array], attend: Any
) -> tuple[jax.Array, None]:
    """Outputs [B, P / merge, out_width] of patches [B, P, d], and no deeper ones."""
    dtype, position = params["position"].dtype, media["position"]
    x = layers.dense(media["patches"].astype(dtype), params["patch"], None, 1, 1.0)
    if cfg.class_token:
        x = jnp.where((position == 0)[..., None], params["class"], x)
    x = x + jnp.take(params["position"], position, axis=0)
    if cfg.class_token:
        x = _norm(x, params["pre_norm"], cfg)

    # The backward pass computes layers again: their activations are many, outputs few.
    @jax.checkpoint
    def body(x, p):
        return _layer(x, p, cfg, media["segment"], attend), None

    done, states = 0, {}
    for depth in sorted(cfg.taps or (cfg.num_layers,)):
        part = jax.tree.map(operator.itemgetter(slice(done, depth)), params["layers"])
        x, _ = jax.lax.scan(body, x, part)
        done, states[depth] = depth, x
    if cfg.taps:
        x = jnp.concatenate([states[depth] for depth in cfg.taps], axis=-1)
    else:
        x = _norm(x, params["post_norm"], cfg)
    return _project(x, params["projector"], cfg), None


def _norm(x, p, cfg):
    return layers.layer_norm(x, p["scale"], p["bias"], cfg.norm_eps)


def _layer(x, p, cfg, segment, attend):
    """One block, its norms before its branches."""
    h = _norm(x, p["attn_norm"], cfg)
    q, k, v = (layers.dense(h, p["attn"][n], None, 1, 1.0) for n in ("q", "k", "v"))
    x = x + layers.dense(attend(q, k, v, segment), p["attn"]["o"], None, 2, 1.0)
    h = layers.dense(_norm(x, p["mlp_norm"], cfg), p["mlp"]["up"], None, 1, 1.0)
    h = layers.ACTIVATIONS[cfg.activation](h)
    return x + layers.dense(h, p["mlp"]["down"], None, 1, 1.0)


def _project(x, p, cfg):
    """[B, P, D] -> [B, P / merge, out_width]."""
    if cfg.pool > 1:
        x = reduce(x, "b (s m) d -> b s d", "mean", m=cfg.merge)
    if cfg.projector == "norm":
        x = layers.rms_norm(x, p["norm"]["scale"], cfg.norm_eps, plus_one=True)
        return x @ p["matrix"]
    for n in range(cfg.projector_layers):
        x = layers.ACTIVATIONS[cfg.projector_activation](x) if n else x
        x = layers.dense(x, p[str(n)], None, 1, 1.0)
    return x
