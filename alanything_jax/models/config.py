"""Frozen, hashable descriptions of a model: what `jax.jit` may treat as static."""

from __future__ import annotations

import dataclasses

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
class DecoderConfig:
    """One decoder for every Llama-shaped text family.

    Attributes:
      width, ffw_width, head_width: sizes D, F, H.
      qk_norm: RMS norm per head on queries and keys, before the rotation (Qwen3).
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
    qk_norm: bool = False
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
