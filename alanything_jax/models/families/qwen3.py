"""Qwen3: RMS norm per head on queries and keys, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families.common import base_config, sliding, text_family


def config_from_hf(hf: Mapping[str, Any], **more: Any) -> DecoderConfig:
    """Our config from a parsed config.json; `more` are fields of kindred families."""
    bias = bool(hf.get("attention_bias"))
    hf = {"head_dim": 128, **hf}
    return base_config(
        hf, qkv_bias=bias, o_bias=bias, qk_norm="rms", **sliding(hf), **more
    )


FAMILY = text_family("Qwen3", config_from_hf)
