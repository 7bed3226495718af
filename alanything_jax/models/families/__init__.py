"""Families by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import llama, mistral, qwen2, qwen3

FAMILIES = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}


def family_of(hf_config: Mapping[str, Any]) -> Any:
    """The module of a config's family.

    Raises ValueError: a model type we do not have; names those we have.
    """
    kind = hf_config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"config.json says model_type={kind!r}; supported are {sorted(FAMILIES)}."
        )
    return FAMILIES[kind]


def config_from_hf(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json, in old or new spelling."""
    return family_of(hf_config).config_from_hf(hf_config)
