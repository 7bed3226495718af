"""Mistral: Llama with a sliding window on every layer, where one is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families.common import base_config, text_family


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    window = hf.get("sliding_window")
    slides = (window is not None,) * hf["num_hidden_layers"]
    return base_config(
        hf, sliding_window=window, window_layers=slides if window else ()
    )


FAMILY = text_family("Mistral", config_from_hf)
