"""Qwen3-VL (arXiv:2511.21631): Qwen3 with M-RoPE, and DeepStack (arXiv:2406.04334).

Each frame of a video stands behind its time in text, with placeholders of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import qwen_vl
from alanything_jax.models.families.common import (
    Family,
    Names,
    base_config,
    text_names,
)


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    given = hf["vision_config"]
    vit = qwen_vl.vision_config(
        {**hf, "vision_config": {"patch_size": 16} | given},
        width=given["hidden_size"],
        ffw_width=given["intermediate_size"],
        out_width=given["out_hidden_size"],
        activation="gelu_tanh",
        patch_bias=True,
        table_size=given.get("num_position_embeddings", 2304),
        deep=tuple(given.get("deepstack_visual_indexes", (8, 16, 24))),
    )
    text, mrope = qwen_vl.text_config(hf, 5e5, (24, 20, 20), interleaved=True)
    bias = bool(text.get("attention_bias"))
    return base_config(
        {"head_dim": 128, **text},
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="rms",
        # Here the top level alone decides, where it says anything.
        tied=bool(hf.get("tie_word_embeddings", text["tie_word_embeddings"])),
        mrope=mrope,
        deepstack=len(vit.depths),
        encoders=(vit,),
    )


def names(cfg: DecoderConfig) -> Names:
    """Names on disk."""
    mlp = {"up": "linear_fc1", "down": "linear_fc2"}
    merger = ("norm", "linear_fc1", "linear_fc2")
    vision = qwen_vl.vision_names(cfg.encoders[0], "model.visual.", mlp, merger)
    return text_names(trunk="model.language_model.") | vision


FAMILY = Family(
    "Qwen3VLForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=functools.partial(qwen_vl.batch, by_frame=True),
    coder=functools.partial(qwen_vl.coder, by_frame=True),
)
