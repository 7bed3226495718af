"""CLIP and SigLIP towers as transformers configures, names and feeds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data.preprocess import SquareVision, mediums_of_pixels
from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.encoders.vit import ViT
from alanything_jax.schema import Batch

# What a config.json may leave out.
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "clip_vision_model": dict(
        patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5
    ),
    "siglip_vision_model": dict(
        patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6
    ),
}
_SIZES = dict(
    image_size=224,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)
ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
# Files of transformers before 5 have `vision_model.`, its own later saves do not; some of
# its releases wrote the names that it has in memory.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
PREFIX = "vision_tower.vision_model."


def activation(name: str, key: str) -> str:
    """Our name of an activation; raises ValueError: one that we do not have."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{key}={name!r}: supported are {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def tower(vision: Mapping[str, Any], default: str, **family: Any) -> ViT:
    """A tower from `vision_config` and what the family adds.

    Args:
      default: the model_type, where the config does not say.

    Raises ValueError: another kind of tower, or activation.
    """
    kind = vision.get("model_type") or default
    if kind not in DEFAULTS:
        raise ValueError(
            f"vision_config.model_type={kind!r}: supported are {sorted(DEFAULTS)}."
        )
    given = _SIZES | DEFAULTS[kind] | dict(vision)
    return ViT(
        image_size=given["image_size"],
        patch_size=given["patch_size"],
        width=given["hidden_size"],
        ffw_width=given["intermediate_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        norm_eps=given["layer_norm_eps"],
        activation=activation(given["hidden_act"], "vision_config.hidden_act"),
        class_token=kind == "clip_vision_model",
        **family,
    )


def tower_names(cfg: ViT, prefix: str = PREFIX) -> dict[str, tuple]:
    """Where the tower's parameters, but for its projector's, lie on disk."""
    layer = f"{prefix}encoder.layers.{{}}."
    shape = (cfg.width, 3, cfg.patch_size, cfg.patch_size)
    linears = {
        **{f"layers/attn/{n}": (f"{layer}self_attn.{n}_proj", 1) for n in "qkv"},
        "layers/attn/o": (f"{layer}self_attn.out_proj", 2),
        "layers/mlp/up": (f"{layer}mlp.fc1", 1),
        "layers/mlp/down": (f"{layer}mlp.fc2", 1),
    }
    norms = {
        "layers/attn_norm": f"{layer}layer_norm1",
        "layers/mlp_norm": f"{layer}layer_norm2",
        "pre_norm": f"{prefix}pre_layrnorm",
        "post_norm": f"{prefix}post_layernorm",
    }
    patch = f"{prefix}embeddings.patch_embedding"
    out: dict[str, tuple] = {
        "patch/kernel": (f"{patch}.weight", 1, shape),
        "patch/bias": (f"{patch}.bias", 0),
        "class": (f"{prefix}embeddings.class_embedding", 0),
        "position": (f"{prefix}embeddings.position_embedding.weight", 0),
    }
    for path, (name, num_in) in linears.items():
        out[f"{path}/kernel"] = (f"{name}.weight", num_in)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    for path, name in norms.items():
        out[f"{path}/scale"] = (f"{name}.weight", 0)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    return {f"encoders/{cfg.name}/{path}": entry for path, entry in out.items()}


def with_pixels(
    cfg: DecoderConfig, arrays: Mapping[str, np.ndarray], *others: str
) -> Batch:
    """Of `input_ids`, `attention_mask` [B, T] and `pixel_values` [N, 3, H, W].

    Pictures stand, in order, where the placeholders are. `others` are names that the
    family knows, too.

    Raises ValueError: a shape that differs, or pictures and placeholders that do not fit.
    """
    (vit,) = cfg.encoders
    tokens, real = inputs.tokens_of(arrays, ("pixel_values", *others))
    mediums = []
    if "pixel_values" in arrays:
        pixels, size = np.asarray(arrays["pixel_values"]), vit.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values {pixels.shape}; this model takes [N, 3, {size}, {size}]."
            )
        # SigLIP's 384 pixels are no multiple of its 14: a convolution leaves the rest out.
        size -= size % vit.patch_size
        square = SquareVision(
            size, vit.patch_size, vit.pool, vit.class_token, vit.keep_class
        )
        mediums = mediums_of_pixels(square, pixels[..., :size, :size])
    kinds = inputs.grouped([(vit.placeholder, mediums)])
    return inputs.with_media(cfg, tokens, real, kinds)
