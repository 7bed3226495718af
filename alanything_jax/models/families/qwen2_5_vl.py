"""Qwen2.5-VL (arXiv:2502.13923): Qwen2-VL whose encoder has windows, and tells time."""

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
from alanything_jax.models.families.qwen2_vl import RENAMES


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    given = hf["vision_config"]
    full = given.get("fullatt_block_indexes", (7, 15, 23, 31))
    vit = qwen_vl.vision_config(
        hf,
        width=given["hidden_size"],
        ffw_width=given["intermediate_size"],
        out_width=given["out_hidden_size"],
        activation="silu",
        norm="rms",
        gated=True,
        windows=tuple(n not in full for n in range(given["depth"])),
        window_size=given.get("window_size", 112),
        tokens_per_second=given.get("tokens_per_second", 4),
    )
    text, mrope = qwen_vl.text_config(hf, 1e6, (16, 24, 24), interleaved=False)
    text = {"rms_norm_eps": 1e-5, **text}
    return base_config(
        text, qkv_bias=True, **sliding(text), mrope=mrope, encoders=(vit,)
    )


def names(cfg: DecoderConfig) -> Names:
    """Names on disk."""
    mlp = {n: f"{n}_proj" for n in ("gate", "up", "down")}
    merger = ("ln_q", "mlp.0", "mlp.2")
    return text_names() | qwen_vl.vision_names(cfg.encoders[0], "visual.", mlp, merger)


FAMILY = Family(
    "Qwen2_5_VLForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=qwen_vl.batch,
    coder=qwen_vl.coder,
    renames=RENAMES,
)
