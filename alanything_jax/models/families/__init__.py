"""Families by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.families import llama, mistral, qwen2, qwen3
from alanything_jax.models.families.common import Family

FAMILIES: Mapping[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
}


def family_of(kind: Any) -> Family:
    """The family of a config's `model_type`.

    Raises ValueError: a model type we do not have; names those we have.
    """
    if kind not in FAMILIES:
        raise ValueError(
            f"config.json says model_type={kind!r}; supported are {sorted(FAMILIES)}."
        )
    return FAMILIES[kind]
