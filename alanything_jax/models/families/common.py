"""What the Llama-shaped families share: reading config.json, naming tensors on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.models import decoder
from alanything_jax.models.config import DecoderConfig, LinearRope, Llama3Rope
from alanything_jax.models.params import flatten


def base_config(hf: Mapping[str, Any], **family: Any) -> DecoderConfig:
    """The fields every family spells alike, and what the family adds."""
    theta, scaling = rope(hf)
    heads = hf["num_attention_heads"]
    fields = dict(
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        ffw_width=hf["intermediate_size"],
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=hf.get("tie_word_embeddings", False),
        max_positions=hf.get("max_position_embeddings", 2048),
    )
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act={hf['hidden_act']!r}: only silu is supported.")
    return DecoderConfig(**(fields | family))


def rope(hf: Mapping[str, Any]) -> tuple[float, LinearRope | Llama3Rope | None]:
    """Theta and scaling, from `rope_parameters` (5.x) or `rope_theta`, `rope_scaling`.

    Raises ValueError: a scaling we do not have.
    """
    new = hf.get("rope_parameters") or {}
    old = hf.get("rope_scaling") or {}
    given = {**old, **new}
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRope(float(given["factor"]))
    if kind == "llama3":
        return theta, Llama3Rope(
            float(given["factor"]),
            float(given["low_freq_factor"]),
            float(given["high_freq_factor"]),
            int(given["original_max_position_embeddings"]),
        )
    raise ValueError(f"rope type {kind!r}: supported are default, linear and llama3.")


def sliding(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's sliding layers: `layer_types`, or all from `max_window_layers` on."""
    if not hf.get("use_sliding_window") or not hf.get("sliding_window"):
        return {}
    count = hf["num_hidden_layers"]
    first = hf.get("max_window_layers", 28)
    kinds = hf.get("layer_types")
    slides = (
        tuple(kind == "sliding_attention" for kind in kinds)
        if kinds
        else tuple(n >= first for n in range(count))
    )
    return {"sliding_window": hf["sliding_window"], "window_layers": slides}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor on disk lies in our tree.

    Attributes:
      path: of the leaf. layer: index into its leading dim; None where not stacked.
      shape: on disk. num_in: how many of our leading dims are torch's input dim, which
        comes last on disk; 0 = kept as it is.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]
    num_in: int = 0

    def to_ours(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """[out, in] -> [in..., out...]; vectors are only reshaped."""
        return (value.T if self.num_in else value).reshape(shape)

    def to_disk(self, value: np.ndarray) -> np.ndarray:
        """The inverse, contiguous as safetensors needs it."""
        if self.num_in:
            value = value.reshape(self.shape[::-1]).T
        return np.ascontiguousarray(value.reshape(self.shape))


# Our name within a layer -> (name on disk, input dims of our kernel).
_LAYER = {
    "attn_norm/scale": ("input_layernorm.weight", 0),
    "mlp_norm/scale": ("post_attention_layernorm.weight", 0),
    "attn/q_norm/scale": ("self_attn.q_norm.weight", 0),
    "attn/k_norm/scale": ("self_attn.k_norm.weight", 0),
    **{f"attn/{n}/kernel": (f"self_attn.{n}_proj.weight", 1) for n in "qkv"},
    **{f"attn/{n}/bias": (f"self_attn.{n}_proj.bias", 0) for n in "qkvo"},
    "attn/o/kernel": ("self_attn.o_proj.weight", 2),
    **{f"mlp/{n}/kernel": (f"mlp.{n}_proj.weight", 1) for n in ("gate", "up", "down")},
    **{f"mlp/{n}/bias": (f"mlp.{n}_proj.bias", 0) for n in ("gate", "up", "down")},
}
_TOP = {
    "embed/text/table": ("model.embed_tokens.weight", 0),
    "final_norm/scale": ("model.norm.weight", 0),
    "heads/text/kernel": ("lm_head.weight", 1),
    "heads/score/kernel": ("score.weight", 1),
}


def tensors(cfg: DecoderConfig, score_head: bool = False) -> dict[str, Tensor]:
    """Every tensor a checkpoint of this config must hold, by its name on disk."""
    out = {}
    for path, spec in flatten(decoder.param_specs(cfg, score_head)).items():
        if path.startswith("layers/"):
            name, num_in = _LAYER[path.removeprefix("layers/")]
            shape = _disk_shape(spec.shape[1:], num_in, path.endswith("/bias"))
            for layer in range(cfg.num_layers):
                full = f"model.layers.{layer}.{name}"
                out[full] = Tensor(path, layer, shape, num_in)
        else:
            name, num_in = _TOP[path]
            out[name] = Tensor(path, None, _disk_shape(spec.shape, num_in), num_in)
    return out


def _disk_shape(shape, num_in, vector=False):
    """Kernels [in..., out...] are [out, in] on disk; a bias [K, H] is one vector."""
    if vector:
        return (math.prod(shape),)
    if not num_in:
        return tuple(shape)
    return (math.prod(shape[num_in:]), math.prod(shape[:num_in]))
