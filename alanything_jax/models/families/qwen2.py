"""Qwen2 and 2.5: biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families.common import base_config, sliding, text_family


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    return base_config(hf, qkv_bias=True, **sliding(hf))


FAMILY = text_family("Qwen2", config_from_hf)
