"""What the Llama-shaped families share: reading config.json, naming tensors on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig, LinearRope, Llama3Rope
from alanything_jax.models.params import flatten
from alanything_jax.schema import Batch


def base_config(hf: Mapping[str, Any], **family: Any) -> DecoderConfig:
    """The fields every family spells alike, and what the family adds.

    Raises ValueError: a rope, or a `hidden_act`, that we do not have.
    """
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
      path: of the leaf. lead: its place in the leaf's stacked dims (layer, expert).
      shape: on disk. num_in: how many of our other leading dims are torch's input dims,
        which come behind its output dim on disk; 0 = kept as it is.
    """

    path: str
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    num_in: int = 0

    def to_ours(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """[out, in...] -> [in..., out...]; vectors are only reshaped."""
        if self.num_in:
            value = value.reshape(value.shape[0], -1).T
        return value.reshape(shape)

    def to_disk(self, value: np.ndarray) -> np.ndarray:
        """The inverse, contiguous as safetensors needs it."""
        if self.num_in:
            value = value.reshape(-1, self.shape[0]).T
        return np.ascontiguousarray(value.reshape(self.shape))


# Our path -> (name on disk, input dims of our kernel). The name has a `{}` for each of the
# path's stacked dims. A third entry is the shape on disk, where it does not follow.
Names = Mapping[str, tuple]

_QKVO = ("q", "k", "v", "o")
_MLP = ("gate", "up", "down")
LAYER_NAMES: Names = {
    "attn_norm/scale": ("input_layernorm.weight", 0),
    "mlp_norm/scale": ("post_attention_layernorm.weight", 0),
    "attn/q_norm/scale": ("self_attn.q_norm.weight", 0),
    "attn/k_norm/scale": ("self_attn.k_norm.weight", 0),
    **{
        f"attn/{n}/kernel": (f"self_attn.{n}_proj.weight", 1 + (n == "o"))
        for n in _QKVO
    },
    **{f"attn/{n}/bias": (f"self_attn.{n}_proj.bias", 0) for n in _QKVO},
    **{f"mlp/{n}/kernel": (f"mlp.{n}_proj.weight", 1) for n in _MLP},
    **{f"mlp/{n}/bias": (f"mlp.{n}_proj.bias", 0) for n in _MLP},
}


def text_names(
    layer: Names = LAYER_NAMES, trunk: str = "model.", head: str = "lm_head.weight"
) -> dict[str, tuple]:
    """The names of a decoder whose trunk lies under a prefix on disk."""
    return {
        "embed/text/table": (f"{trunk}embed_tokens.weight", 0),
        "final_norm/scale": (f"{trunk}norm.weight", 0),
        "heads/text/kernel": (head, 1),
        "heads/score/kernel": ("score.weight", 1),
        **{
            f"layers/{path}": (f"{trunk}layers.{{}}.{name}", *more)
            for path, (name, *more) in layer.items()
        },
    }


def tensors(specs: Mapping[str, Any], names: Names) -> dict[str, Tensor]:
    """Every tensor that a checkpoint must hold, by its name on disk.

    Args:
      specs: the declared tree. names: of all its paths.
    """
    out = {}
    for path, spec in flatten(specs).items():
        name, num_in, *given = names[path]
        depth = name.count("{}")
        shape = _disk_shape(spec.shape[depth:], num_in, path.endswith("/bias"))
        for lead in np.ndindex(*spec.shape[:depth]):
            full = name.format(*lead)
            out[full] = Tensor(path, lead, given[0] if given else shape, num_in)
    return out


def _disk_shape(shape, num_in, vector=False):
    """Kernels [in..., out...] are [out, in] on disk; a bias [K, H] is one vector."""
    if vector:
        return (math.prod(shape),)
    if not num_in:
        return tuple(shape)
    return (math.prod(shape[num_in:]), math.prod(shape[:num_in]))


@dataclasses.dataclass(frozen=True)
class Family:
    """What the hub and `Model` ask of a family.

    Attributes:
      architecture: class name in transformers. classifier: the name of its class with a
        scalar head; "" = there is none, and a score head is a file of its own.
      config: parsed config.json -> our config.
      names: our config -> the names of its parameters on disk.
      inputs: config and the arrays of the HF processor, under their names -> Batch; of a
        family with `codes`, those are its third argument.
      renames: (pattern, replacement) of `re.sub`, from other spellings on disk to `names`.
      unused: pattern of tensors that are passed through. files: names of files, such as
        what unused tensors need, that are, too; they are never read.
      codes: (config.json, codec, its arrays) -> `families.codes.Codes`, where a codec's
        tensors are in the checkpoint.
      drawing: tensors that are passed through -> what draws pictures by a head of its own.
      coder: (tokenizer, config, config.json, processor's configs, codes if any) -> Coder,
        which puts a record's media into its tokens; None for text.
    """

    architecture: str
    config: Callable[[Mapping[str, Any]], DecoderConfig]
    classifier: str = ""
    names: Callable[[DecoderConfig], Names] = lambda cfg: text_names()
    inputs: Callable[..., Batch] = inputs.text
    renames: tuple[tuple[str, str], ...] = ()
    unused: str = ""
    files: tuple[str, ...] = ()
    codes: Callable[..., Any] | None = None
    drawing: Callable[..., dict[str, Any]] | None = None
    coder: Callable[..., Any] | None = None


def text_family(name: str, config: Callable[..., DecoderConfig]) -> Family:
    """A text family whose classes transformers calls `NameFor...`."""
    return Family(f"{name}ForCausalLM", config, f"{name}ForSequenceClassification")
