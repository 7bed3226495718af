"""Families by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.families import (
    chameleon,
    emu3,
    gemma3,
    janus,
    llama,
    llava,
    mistral,
    qwen2,
    qwen2_5_omni,
    qwen2_5_vl,
    qwen2_audio,
    qwen2_vl,
    qwen3,
    qwen3_moe,
    qwen3_vl,
)
from alanything_jax.models.families.common import Family

FAMILIES: Mapping[str, Family] = {
    "chameleon": chameleon.FAMILY,
    "emu3": emu3.FAMILY,
    "gemma3": gemma3.FAMILY,
    "gemma3_text": gemma3.TEXT,
    "janus": janus.FAMILY,
    "llama": llama.FAMILY,
    "llava": llava.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen2_5_omni": qwen2_5_omni.FAMILY,
    "qwen2_5_omni_thinker": qwen2_5_omni.THINKER,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen2_audio": qwen2_audio.FAMILY,
    "qwen2_vl": qwen2_vl.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen3_moe": qwen3_moe.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
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
