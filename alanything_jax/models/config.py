"""Frozen, hashable descriptions of a model: what `jax.jit` may treat as static."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from alanything_jax.models.grammar import Grammar


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama-3.1's frequency scaling: long wavelengths are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Every position divided by `factor` (position interpolation)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class MRope:
    """Rotary positions of three axes (time, height, width), Qwen2-VL, arXiv:2409.12191.

    Attributes:
      sections: how many of a head's H / 2 frequencies each axis turns.
      interleaved: axes take turns from frequency to frequency (Qwen3-VL), instead of one
        run each.
      advance: where text goes on behind a medium: one past its largest position, or, as
        transformers 5.23 has it, past its height or width ("grid").
    """

    sections: tuple[int, int, int]
    interleaved: bool = False
    advance: Literal["max_plus_one", "grid"] = "max_plus_one"


@dataclasses.dataclass(frozen=True)
class MoE:
    """A feed-forward of E experts, of which each token uses the `active` likeliest.

    Attributes:
      width: F of one expert. normalize: the used experts' weights sum to one.
    """

    experts: int
    active: int
    width: int
    normalize: bool = True


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """One decoder for every Llama-shaped family; encoders put media into its rows.

    Attributes:
      width, ffw_width, head_width: sizes D, F, H.
      norm_plus_one: norms multiply by 1 + their weight, in float32 (Gemma).
      norm_place: of norms about a branch: before it, after it, or both.
      qk_norm: norm per head on queries and keys before the rotation: RMS (Qwen3) or
        LayerNorm with weights of each head's own (Chameleon); "" = none.
      query_scale: what queries are multiplied by; None = H ** -0.5.
      embed_scale: what embeddings of text are multiplied by.
      local_theta: theta of sliding layers, which then scale no positions (Gemma3).
      deepstack: media outputs of as many depths are added behind the first layers.
      encoders: configs of `models.encoders`, one an entry of `Batch.media`.
      sliding_window: how many positions back a sliding layer sees, itself included.
      window_layers: per layer, whether it slides; empty = none does.
      tied: the embedding table is also the language-model head.
      grammar: which ids may stand where, if some are codes of media; None = all text.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffw_width: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | LinearRope | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norm_plus_one: bool = False
    norm_place: Literal["before", "after", "both"] = "before"
    qk_norm: Literal["", "rms", "layer"] = ""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scale: float | None = None
    embed_scale: float | None = None
    local_theta: float | None = None
    mrope: MRope | None = None
    moe: MoE | None = None
    deepstack: int = 0
    encoders: tuple[Any, ...] = ()
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    tied: bool = True
    max_positions: int = 8192
    grammar: Grammar | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}: every key head must serve the same "
                "number of query heads."
            )
        if self.window_layers and len(self.window_layers) != self.num_layers:
            raise ValueError(
                f"window_layers has {len(self.window_layers)} entries for "
                f"{self.num_layers} layers: give one per layer, or none."
            )
