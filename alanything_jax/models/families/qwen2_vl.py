"""Qwen2-VL (arXiv:2409.12191): Qwen2 with M-RoPE, behind a transformer over patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import qwen_vl
from alanything_jax.models.families.common import (
    Family,
    Names,
    base_config,
    sliding,
    text_names,
)

# What transformers 4.52 and later wrote now and then, to what the hub has.
RENAMES = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    given = hf["vision_config"]
    vit = qwen_vl.vision_config(
        hf,
        width=given["embed_dim"],
        ffw_width=int(given["embed_dim"] * given.get("mlp_ratio", 4)),
        out_width=given["hidden_size"],
        activation="quick_gelu",
    )
    text, mrope = qwen_vl.text_config(hf, 1e6, (16, 24, 24), interleaved=False)
    text = {"rms_norm_eps": 1e-5, **text}
    return base_config(
        text, qkv_bias=True, **sliding(text), mrope=mrope, encoders=(vit,)
    )


def names(cfg: DecoderConfig) -> Names:
    """Names on disk."""
    mlp, merger = {"up": "fc1", "down": "fc2"}, ("ln_q", "mlp.0", "mlp.2")
    return text_names() | qwen_vl.vision_names(cfg.encoders[0], "visual.", mlp, merger)


FAMILY = Family(
    "Qwen2VLForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=qwen_vl.batch,
    coder=qwen_vl.coder,
    renames=RENAMES,
)
