"""The vision transformers of Qwen2-VL, 2.5-VL and 3-VL: pictures and videos of any size.

arXiv:2409.12191, 2502.13923, 2511.21631. Patches of a frame see each other, with rotary
positions of their row and column; the patches of a square are merged to one output.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from alanything_jax.models import layers
from alanything_jax.models.params import ParamSpec, Tree, linear

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class QwenVit:
    """The encoder's sizes, and what differs between its three generations.

    Attributes:
      width, ffw_width: sizes D, F. out_width: of an output, the language model's width.
      merge_size: the side, in patches, of the square that makes an output.
      activation: a name of `layers.ACTIVATIONS`. gated: the feed-forward has a gate.
      patch_bias: the embedding of patches has one.
      fused: queries, keys and values are made by one kernel.
      windows: per layer, whether patches see only their window; empty = none does.
      window_size: side of a window in pixels; None = no windows.
      table_size: entries of the table of positions, a square; 0 = there is none.
      deep: layers behind which mergers of their own make outputs, too; those that the
        encoder has not make none.
      tokens_per_second: temporal positions in a second of video; None = one a frame.
      image_token, video_token: ids of the placeholders.
    """

    num_layers: int
    width: int
    num_heads: int
    ffw_width: int
    out_width: int
    patch_size: int
    activation: str
    temporal_patch_size: int = 2
    merge_size: int = 2
    channels: int = 3
    norm: Literal["layer", "rms"] = "layer"
    gated: bool = False
    patch_bias: bool = False
    fused: bool = True
    theta: float = 10_000.0
    windows: tuple[bool, ...] = ()
    window_size: int | None = None
    table_size: int = 0
    deep: tuple[int, ...] = ()
    tokens_per_second: float | None = None
    image_token: int = 151655
    video_token: int = 151656
    name: str = "vision"

    @property
    def merge(self) -> int:
        """Patches that make one output."""
        return self.merge_size**2

    @property
    def align(self) -> int:
        """Whole outputs, and rows that a mesh can cut."""
        return math.lcm(self.merge, 8)

    @property
    def depths(self) -> tuple[int, ...]:
        """Which entries of `deep` make outputs, the first layer first."""
        order = sorted(range(len(self.deep)), key=self.deep.__getitem__)
        return tuple(n for n in order if self.deep[n] < self.num_layers)

    @property
    def arrays(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """Name, trailing shape and dtype of what a row holds of each patch."""
        values = self.channels * self.temporal_patch_size * self.patch_size**2
        found = [("patches", (values,), "float32"), ("position", (2,), "int32")]
        if self.windows:
            found.append(("window", (), "int32"))
        if self.table_size:
            found += [("pos_index", (4,), "int32"), ("pos_weight", (4,), "float32")]
        return tuple(found)


def specs(cfg: QwenVit) -> Tree:
    """The declaration of the encoder's parameters."""
    L, D, F, N = cfg.num_layers, cfg.width, cfg.ffw_width, cfg.num_heads
    H, M = D // N, cfg.merge * cfg.width

    def norm(size, stack=()):
        axes = ("layers",) * len(stack) + (None,)
        out = {"scale": ParamSpec((*stack, size), axes, "ones")}
        if cfg.norm == "layer":
            out["bias"] = ParamSpec((*stack, size), axes, "zeros")
        return out

    def merger(size, stack=()):
        return {
            "norm": norm(size, stack),
            "up": linear((M, M), ("embed", "mlp"), lead=stack),
            "down": linear((M, cfg.out_width), ("mlp", "embed"), lead=stack),
        }

    # F is no axis of tensor parallelism: the 3,420 of 2.5-VL are not cut by 8.
    up, down = ("embed", None), (None, "embed")
    stacked = functools.partial(linear, lead=(L,))
    mlp = {"up": stacked((D, F), up), "down": stacked((F, D), down)}
    if cfg.gated:
        mlp["gate"] = stacked((D, F), up)
    heads = stacked((D, N, H), ("embed", "heads", None))
    attn = {"o": stacked((N, H, D), ("heads", None, "embed"), 2)}
    if cfg.fused:
        attn["qkv"] = stacked((D, 3, N, H), ("embed", None, "heads", None))
    else:
        attn |= {name: heads for name in ("q", "k", "v")}
    values = cfg.arrays[0][1]
    out = {
        "patch": linear((*values, D), (None, "embed"), bias=cfg.patch_bias),
        "layers": {
            "attn_norm": norm(D, (L,)),
            "mlp_norm": norm(D, (L,)),
            "attn": attn,
            "mlp": mlp,
        },
        "merger": merger(D),
    }
    if cfg.table_size:
        out["table"] = ParamSpec((cfg.table_size, D), (None, "embed"), "normal", D)
    if cfg.deep:
        out["deep"] = merger(M, (len(cfg.deep),))
    return out


def encode(
    params: Tree, cfg: QwenVit, media: Mapping[str, jax.Array], attend: Callable
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [B, P / merge, out_width], and those of n depths [n, ...], or None."""
    x = media["patches"].astype(params["patch"]["kernel"].dtype)
    x = _dense(x, params["patch"])
    if cfg.table_size:
        taps = params["table"][media["pos_index"]].astype(jnp.float32)
        table = jnp.einsum("bpnd,bpn->bpd", taps, media["pos_weight"])
        x = x + table.astype(x.dtype)
    tables = rope_tables(cfg, media["position"])
    segment = media["segment"]
    near = media["window"] if cfg.windows else segment
    taken = jnp.array(cfg.deep, jnp.int32)[:, None, None, None]

    @jax.checkpoint
    def body(carry, layer):
        x, deep = carry
        p, windowed, number = layer
        seen = jnp.where(windowed, near, segment)
        x = _layer(x, p, cfg, tables, lambda q, k, v: attend(q, k, v, seen))
        return (x, jnp.where(taken == number, x, deep)), None

    windowed = jnp.array(cfg.windows or (False,) * cfg.num_layers)
    stacked = (params["layers"], windowed, jnp.arange(cfg.num_layers))
    deep = jnp.zeros((len(cfg.deep), *x.shape), x.dtype)
    (x, deep), _ = jax.lax.scan(body, (x, deep), stacked)
    outputs = _merge(x, params["merger"], cfg, early=True)
    if not cfg.depths:
        return outputs, None
    deep = jax.vmap(lambda x, p: _merge(x, p, cfg))(deep, params["deep"])
    return outputs, deep[jnp.array(cfg.depths)]


def rope_tables(cfg: QwenVit, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [B, P, H/2] float32, for rows and columns [B, P, 2]: the first half of
    the frequencies turns by the row, the second by the column."""
    half = cfg.width // cfg.num_heads // 2
    frequencies = cfg.theta ** -(jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    angles = position.astype(jnp.float32)[..., None] * frequencies
    angles = rearrange(angles, "b p s f -> b p (s f)")
    return jnp.cos(angles), jnp.sin(angles)


def _layer(x, p, cfg, tables, attend):
    h = _norm(x, p["attn_norm"], cfg)
    if cfg.fused:
        q, k, v = jnp.moveaxis(_dense(h, p["attn"]["qkv"]), -3, 0)
    else:
        q, k, v = (_dense(h, p["attn"][name]) for name in ("q", "k", "v"))
    q, k = (
        layers.rotate(y.astype(jnp.float32), *tables).astype(y.dtype) for y in (q, k)
    )
    x = x + _dense(attend(q, k, v), p["attn"]["o"], 2)
    h, act = _norm(x, p["mlp_norm"], cfg), layers.ACTIVATIONS[cfg.activation]
    inner = _dense(h, p["mlp"]["up"])
    inner = act(_dense(h, p["mlp"]["gate"])) * inner if cfg.gated else act(inner)
    return x + _dense(inner, p["mlp"]["down"])


def _merge(x, p, cfg, early=False):
    """[B, P, D] -> [B, P / merge, out_width]; `early`: the norm is of each patch."""
    x = _norm(x, p["norm"], cfg) if early else x
    x = rearrange(x, "b (p m) d -> b p (m d)", m=cfg.merge)
    x = x if early else _norm(x, p["norm"], cfg)
    return _dense(layers.ACTIVATIONS["gelu"](_dense(x, p["up"])), p["down"])


def _norm(x, p, cfg):
    if cfg.norm == "rms":
        return layers.rms_norm(x, p["scale"], EPS)
    return layers.layer_norm(x, p["scale"], p["bias"], EPS)


def _dense(x, p, num_in=1):
    return layers.dense(x, p, None, num_in, 1.0)
