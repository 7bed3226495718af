"""Whisper's encoder as Qwen2-Audio and Qwen2.5-Omni have it: sound to soft tokens.

arXiv:2212.04356, 2407.10759, 2503.20215. Two convolutions make one state of two mel
frames; behind the layers two states are averaged to one output, of 40 ms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from alanything_jax.models import layers
from alanything_jax.models.params import ParamSpec, Tree, layer_norm, linear

EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class AudioEncoder:
    """One encoder with its projector.

    Attributes:
      bins: mel bins of a frame.
      frames: what the convolutions and positions reach over: a whole medium, filled up
        with silence (Qwen2-Audio), or a chunk of it (Omni).
      chunked: frames behind a chunk's end are nothing instead of silence, and positions
        are sines instead of a stored table.
      width, ffw_width, out_width: sizes D and F, and the decoder's D.
      placeholder: id of the tokens in whose places the outputs go.
    """

    bins: int
    frames: int
    width: int
    ffw_width: int
    num_layers: int
    num_heads: int
    out_width: int
    placeholder: int
    activation: str = "gelu"
    chunked: bool = False
    name: str = "audio"
    merge: int = 4

    def __post_init__(self):
        if self.frames % self.merge:
            name = "n_window" if self.chunked else "max_source_positions"
            raise ValueError(
                f"the encoder reads {self.frames} mel frames at once, and an output is of "
                f"{self.merge}: make audio_config.{name} even."
            )

    @property
    def align(self) -> int:
        """Whole runs of frames, and rows that a mesh can cut."""
        return math.lcm(self.frames, 8)

    @property
    def arrays(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """What a row holds of each mel frame."""
        return (("patches", (self.bins,), "float32"),)


def specs(cfg: AudioEncoder) -> Tree:
    """The declaration of the encoder's parameters."""
    L, D, F, N = cfg.num_layers, cfg.width, cfg.ffw_width, cfg.num_heads
    H = D // N

    stacked = functools.partial(linear, lead=(L,))
    heads = ((D, N, H), ("embed", "heads", None))
    out = {
        "conv1": linear((cfg.bins, 3, D), (None, None, "embed"), 2),
        "conv2": linear((D, 3, D), ("embed", None, None), 2),
        "layers": {
            "attn_norm": layer_norm(D, (L,)),
            "mlp_norm": layer_norm(D, (L,)),
            "attn": {
                "q": stacked(*heads),
                "k": stacked(*heads, bias=False),
                "v": stacked(*heads),
                "o": stacked((N, H, D), ("heads", None, "embed"), 2),
            },
            "mlp": {
                "up": stacked((D, F), ("embed", "mlp")),
                "down": stacked((F, D), ("mlp", "embed")),
            },
        },
        "norm": layer_norm(D),
        "projector": linear((D, cfg.out_width), ("embed", None)),
    }
    if not cfg.chunked:
        table = ParamSpec((cfg.frames // 2, D), (None, "embed"), "normal", D)
        out["position"] = table
    return out


def encode(
    params: Tree, cfg: AudioEncoder, media: Mapping[str, jax.Array], attend: Callable
) -> tuple[jax.Array, None]:
    """Outputs [B, P / 4, out_width] of mel frames [B, P, bins], and no deeper ones.

    P is a multiple of `cfg.frames`.
    """
    rows, segment = len(media["patches"]), media["segment"]
    x = media["patches"].astype(params["conv1"]["kernel"].dtype)
    x = _conv(rearrange(x, "b (n t) d -> (b n) t d", t=cfg.frames), params["conv1"], 1)
    if cfg.chunked:
        real = rearrange(segment > 0, "b (n t) -> (b n) t 1", t=cfg.frames)
        x = jnp.where(real, x, 0)
        table = jnp.asarray(sines(cfg.frames // 2, cfg.width), x.dtype)
    else:
        # It is a weight on disk alone, and never trained.
        table = jax.lax.stop_gradient(params["position"])
    x = _conv(x, params["conv2"], 2) + table
    x = rearrange(x, "(b n) t d -> b (n t) d", b=rows)
    segment = segment[:, ::2]

    # As in `vit`: the backward pass makes the layers' insides again.
    @jax.checkpoint
    def body(x, p):
        return _layer(x, p, cfg, segment, attend), None

    x, _ = jax.lax.scan(body, x, params["layers"])
    x = reduce(x, "b (s m) d -> b s d", "mean", m=2)
    return _dense(_norm(x, params["norm"]), params["projector"]), None


def sines(length: int, width: int) -> np.ndarray:
    """Whisper's positions: float32 [length, width], sines beside cosines of frequencies
    from 1 down to 1 / 10,000 radians a place."""
    half = width // 2
    step = np.float32(-math.log(10_000) / (half - 1))
    turns = np.outer(
        np.arange(length, dtype="f"), np.exp(step * np.arange(half, dtype="f"))
    )
    return np.concatenate([np.sin(turns), np.cos(turns)], axis=1)


def _conv(x, p, stride):
    """GELU of a convolution over three frames, [n, t, d] -> [n, t / stride, D]."""
    x = jax.lax.conv_general_dilated(
        x, p["kernel"], (stride,), ((1, 1),), dimension_numbers=("NTC", "ITO", "NTC")
    )
    return layers.ACTIVATIONS["gelu"](x + p["bias"])


def _layer(x, p, cfg, segment, attend):
    """One block, its norms before its branches."""
    h = _norm(x, p["attn_norm"])
    q, k, v = (_dense(h, p["attn"][n]) for n in ("q", "k", "v"))
    x = x + _dense(attend(q, k, v, segment), p["attn"]["o"], 2)
    h = _dense(_norm(x, p["mlp_norm"]), p["mlp"]["up"])
    return x + _dense(layers.ACTIVATIONS[cfg.activation](h), p["mlp"]["down"])


def _norm(x, p):
    return layers.layer_norm(x, p["scale"], p["bias"], EPS)


def _dense(x, p, num_in=1):
    return layers.dense(x, p, None, num_in, 1.0)
