"""Llama 2 and 3.x (and SmolLM2): no biases unless the config says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families.common import base_config, text_family


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    bias = bool(hf.get("attention_bias"))
    return base_config(
        hf, qkv_bias=bias, o_bias=bias, mlp_bias=bool(hf.get("mlp_bias"))
    )


FAMILY = text_family("Llama", config_from_hf)
