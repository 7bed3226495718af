"""A text model given sight: a fresh CLIP tower and projector before it, as LLaVA has them.

`clip:64/16/128x4`: pictures of 64 pixels, patches of 16, width 128, 4 layers. What comes
out is a LLaVA model, on disk too.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import numpy as np

from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.tiny import TYPED
from alanything_jax.models import params
from alanything_jax.models.families import anything, family_of, towers
from alanything_jax.models.model import Model

MARK = anything.placeholder("image")
_HEAD = 32


def vision_config(text: str) -> dict[str, Any]:
    """`vision_config` of `clip:SIZE/PATCH/WIDTHxLAYERS`; raises ValueError: not of it."""
    match = re.fullmatch(r"clip:(\d+)/(\d+)/(\d+)x(\d+)", text)
    size, patch, width, layers = map(int, match.groups()) if match else (0, 1, 1, 0)
    if not size or size % patch or width % _HEAD:
        raise ValueError(
            f"model.vision {text!r}: write clip:SIZE/PATCH/WIDTHxLAYERS, such as "
            f"clip:64/16/128x4; the size a multiple of the patch, the width of {_HEAD}."
        )
    return {
        "model_type": "clip_vision_model",
        "image_size": size,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD,
    }


def llava_config(
    text: dict[str, Any], vision: str, token: int, vocab_size: int
) -> dict[str, Any]:
    """config.json of a LLaVA around a text model's; `token` stands for an output."""
    return {
        "model_type": "llava",
        "text_config": {**text, "vocab_size": vocab_size},
        "vision_config": vision_config(vision),
        "image_token_index": token,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    } | {name: text[name] for name in ("dtype", "eos_token_id") if name in text}


def processor(vision: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Files of transformers' processor, their names without the ending: CLIP's defaults."""
    size = vision["image_size"]
    return {
        "preprocessor_config": dict(
            image_processor_type="CLIPImageProcessor",
            size={"shortest_edge": size},
            crop_size=size,
        ),
        "processor_config": dict(
            processor_class="LlavaProcessor",
            image_token=MARK,
            patch_size=vision["patch_size"],
            num_additional_image_tokens=1,
            vision_feature_select_strategy="default",
        ),
    }


def with_tower(bundle: Bundle, vision: str, seed: int = 0) -> Bundle:
    """A text model that also reads pictures, through a tower drawn at random.

    Its chat template becomes ChatML that takes pictures among the text.

    Raises ValueError: it takes media already, or chats otherwise than in ChatML.
    """
    tokenizer = bundle.tokenizer
    if bundle.coder is not None:
        raise ValueError(f"{bundle.source} takes media already: no model.vision.")
    if tokenizer is None or "<|im_start|>" not in (tokenizer.chat_template or ""):
        raise ValueError(
            f"{bundle.source} does not chat in ChatML: for model.vision take one that does."
        )
    tokenizer.add_tokens([MARK], special_tokens=True)
    tokenizer.chat_template = TYPED
    token = tokenizer.convert_tokens_to_ids(MARK)
    size = -(-len(tokenizer) // anything.MULTIPLE) * anything.MULTIPLE
    size = max(bundle.model.config.vocab_size, size)
    config = llava_config(bundle.hf_config, vision, token, size)
    family = family_of("llava")
    model = Model("llava", family.config(config))
    key, table = jax.random.key(seed), bundle.params["embed"]["text"]["table"]
    key = jax.random.fold_in(key, 4)
    tower = params.init(model.specs()["encoders"], key, table.dtype)
    files = processor(config["vision_config"])
    norm = np.ones(config["vision_config"]["hidden_size"], np.float32)
    last = f"{towers.PREFIX}post_layernorm"
    return dataclasses.replace(
        bundle,
        model=model,
        params=anything.extend_params(bundle.params, size, key) | {"encoders": tower},
        hf_config=config,
        directory=None,  # Its files are of a text model: all are written anew.
        # LLaVA has a norm behind the tower, and leaves it out.
        extra={f"{last}.weight": norm, f"{last}.bias": 0 * norm},
        dtypes={},
        names={},
        processor=files,
        coder=family.coder(tokenizer, model.config, config, files),
    )
