"""A text model given sight: a fresh CLIP tower and projector before it, as LLaVA has them.

`clip:64/16/128x4`: pictures of 64 pixels, patches of 16, width 128, 4 layers. What comes
out is a LLaVA model, on disk too.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from alanything_jax.data.preprocess.images import Look
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.tiny import TYPED
from alanything_jax.models import params
from alanything_jax.models.families import anything, family_of
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
        "projection_dim": width,
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
        # The tower is trained with the rest: its last layer is as good as any.
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    } | {name: text[name] for name in ("dtype", "eos_token_id") if name in text}


def processor(vision: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What transformers' processor reads: file name without its ending -> content."""
    size, look = vision["image_size"], Look()
    return {
        "preprocessor_config": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
            "image_mean": list(look.mean),
            "image_std": list(look.std),
            "rescale_factor": look.scale,
            "resample": look.resample,
            **dict.fromkeys(
                ("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True
            ),
            "do_convert_rgb": True,
        },
        "processor_config": {
            "processor_class": "LlavaProcessor",
            "image_token": MARK,
            "patch_size": vision["patch_size"],
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
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
            f"model.vision writes ChatML, which is not the chat template of "
            f"{bundle.source}: give a model that has it, such as SmolLM2 or Qwen."
        )
    new = {"extra_special_tokens": [MARK]}
    tokenizer.add_special_tokens(new, replace_extra_special_tokens=False)
    tokenizer.chat_template = TYPED
    token, multiple = tokenizer.convert_tokens_to_ids(MARK), anything.MULTIPLE
    size = max(
        bundle.model.config.vocab_size, -(-len(tokenizer) // multiple) * multiple
    )
    config = llava_config(bundle.hf_config, vision, token, size)
    family = family_of("llava")
    model = Model("llava", family.config(config))
    key = jax.random.fold_in(jax.random.key(seed), 4)
    dtype = bundle.params["embed"]["text"]["table"].dtype
    tower = params.init(model.specs()["encoders"], key, jnp.dtype(dtype))
    files = processor(config["vision_config"])
    return dataclasses.replace(
        bundle,
        model=model,
        params=anything.extend_params(bundle.params, size, key) | {"encoders": tower},
        hf_config=config,
        # Its files are of a text model: all are written anew.
        directory=None,
        extra={},
        dtypes={},
        names={},
        processor=files,
        coder=family.coder(tokenizer, model.config, config, files),
    )
