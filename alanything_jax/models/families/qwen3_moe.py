"""Qwen3-MoE: Qwen3 whose feed-forwards are mixtures of experts, in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig, MoE
from alanything_jax.models.families import qwen3
from alanything_jax.models.families.common import (
    LAYER_NAMES,
    Family,
    Names,
    text_names,
)


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json.

    Raises ValueError: some layers have no experts.
    """
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise ValueError(
            f"mlp_only_layers={hf.get('mlp_only_layers')}, decoder_sparse_step="
            f"{hf.get('decoder_sparse_step')}: only models whose layers all have experts "
            "are supported ([] and 1)."
        )
    moe = MoE(
        hf.get("num_experts") or hf["num_local_experts"],
        hf["num_experts_per_tok"],
        hf["moe_intermediate_size"],
        bool(hf.get("norm_topk_prob", False)),
    )
    # Its window, where one is used, is of every layer; its head_dim follows from the width.
    every = ["sliding_attention"] * hf["num_hidden_layers"]
    given = {"head_dim": None, **hf, "layer_types": every}
    return qwen3.config_from_hf(given, moe=moe)


def _names(cfg: DecoderConfig) -> Names:
    experts = {
        f"mlp/{n}/kernel": (f"mlp.experts.{{}}.{n}_proj.weight", 1)
        for n in ("gate", "up", "down")
    }
    router = {"mlp/router/kernel": ("mlp.gate.weight", 1)}
    return text_names(LAYER_NAMES | experts | router)


FAMILY = Family(
    "Qwen3MoeForCausalLM",
    config_from_hf,
    "Qwen3MoeForSequenceClassification",
    names=_names,
)
