"""Small random models of every family, with a tokenizer of bytes; no network.

Their media are small, too: pictures of a few patches, two seconds of sound.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import preprocess
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.coder import Coder
from alanything_jax.hub.bundle import Bundle
from alanything_jax.models import params
from alanything_jax.models.families import anything, family_of, towers
from alanything_jax.models.model import Model

# What stands for a medium of each kind.
MARKS = {"image": "<|image|>", "audio": "<|audio|>", "video": "<|video|>"}
SOFT = ("<|soft|>", "<|end|>")
# ChatML whose messages may be lists of typed parts, as processors' templates take them.
TYPED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<|' + part['type'] + '|>' }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_SQUARE = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_MEL = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "max_source_positions": 100,
}
_GRID_2_5 = _PATCHES | {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "tokens_per_second": 2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
# Family -> (its text model, kinds of media, what its config.json adds).
MEDIA: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "llava": (
        "llama",
        ("image",),
        {"vision_config": _SQUARE | {"model_type": "clip_vision_model"}},
    ),
    "gemma3": (
        "gemma3_text",
        ("image",),
        {
            "vision_config": _SQUARE | {"vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2_vl": (
        "qwen2",
        ("image", "video"),
        {
            "vision_config": _PATCHES
            | {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
        },
    ),
    "qwen2_5_vl": ("qwen2", ("image", "video"), {"vision_config": _GRID_2_5}),
    "qwen3_vl": (
        "qwen3",
        ("image", "video"),
        {
            "vision_config": _PATCHES
            | {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            }
        },
    ),
    "qwen2_audio": ("qwen2", ("audio",), {"audio_config": _MEL}),
    "qwen2_5_omni_thinker": (
        "qwen2",
        ("image", "audio", "video"),
        {
            "vision_config": _GRID_2_5,
            "audio_config": _MEL | {"n_window": 10, "output_dim": 64},
        },
    ),
}
# Keys under which families say what stands for a medium.
_KEYS = {
    "llava": "{}_token_index",
    "gemma3": "{}_token_index",
    "qwen2_audio": "{}_token_index",
    "qwen2_5_omni_thinker": "{}_token_index",
}

# Tensors that transformers' classes have, and nothing reads: name -> shape.
_UNREAD: dict[str, dict[str, Any]] = {
    "llava": {
        f"{towers.PREFIX}post_layernorm.{leaf}": 32 for leaf in ("weight", "bias")
    },
    "qwen2_5_omni_thinker": {"audio_tower.audio_bos_eos_token.weight": (2, 64)},
}


def tiny_bundle(family: str, seed: int = 0, dtype: str = "float32") -> Bundle:
    """A random two-layer model of a family, with a byte tokenizer."""
    shape = (64, 2, 4, 2)
    tokenizer = tiny_tokenizer(family)
    if family not in MEDIA:
        config = text_config(family, tokenizer, _vocab(tokenizer), shape, dtype)
        specs = params.flatten(Model(family, family_of(family).config(config)).specs())
        # A family whose text model is configured within would be as large as a real one.
        if sum(math.prod(spec.shape) for spec in specs.values()) > 10_000_000:
            raise ValueError(
                f"there is no tiny:{family}. Give random:DIRECTORY with a config.json of "
                f"few layers, or a tiny text model, or one of {sorted(MEDIA)}."
            )
        return random_bundle(config, tokenizer, f"tiny:{family}", seed, dtype)
    text, kinds, more = MEDIA[family]
    inner = text_config(text, tokenizer, _vocab(tokenizer), shape, dtype)
    if family.startswith("qwen") and "audio" not in family:
        inner["rope_parameters"] = _MROPE
    key = _KEYS.get(family, "{}_token_id")
    ids = {
        key.format(kind): i
        for kind, i in zip(kinds, tokenizer.convert_tokens_to_ids(_marks(kinds)))
    }
    if family == "gemma3":
        # The template writes what opens a picture; another token stands for outputs.
        soft, end = tokenizer.convert_tokens_to_ids(list(SOFT))
        ids = {
            "image_token_index": soft,
            "boi_token_index": ids["image_token_index"],
            "eoi_token_index": end,
        }
    if family == "qwen3_vl":
        names = ("vision_start_token_id", "vision_end_token_id")
        both = tokenizer.convert_tokens_to_ids(list(SOFT))
        ids |= dict(zip(names, both, strict=True))
    config = {"model_type": family, "text_config": inner, "dtype": dtype, **ids, **more}
    config["tie_word_embeddings"] = True
    bundle = random_bundle(config, tokenizer, f"tiny:{family}", seed, dtype)
    make = family_of(family).coder
    coder = make(tokenizer, bundle.model.config, config, {})
    soft = {kind: _small(entry) for kind, entry in coder.soft.items()}
    unread = {n: np.ones(size, dtype) for n, size in _UNREAD.get(family, {}).items()}
    coder = dataclasses.replace(coder, soft=soft)
    return dataclasses.replace(bundle, coder=coder, extra=unread)


def _small(entry):
    """Omni's processor makes large frames, whatever its files say."""
    (settings,) = entry.medium.args
    if not isinstance(settings, preprocess.GridVision):
        return entry
    settings = dataclasses.replace(settings, min_pixels=8 * 8, max_pixels=24 * 24)
    return dataclasses.replace(
        entry, medium=functools.partial(entry.medium.func, settings)
    )


def tiny_tokenizer(family: str) -> Any:
    """A tokenizer of bytes, and of the family's placeholders."""
    if family not in MEDIA:
        return byte_tokenizer()
    template, written = TYPED, "'<|' + part['type'] + '|>'"
    if family == "qwen3_vl":
        # A video's frames stand between these, and so does its placeholder.
        begin, end = SOFT
        template = template.replace(written, f"'{begin}' + {written} + '{end}'")
    tokenizer = byte_tokenizer(template)
    marks = {"extra_special_tokens": [*MARKS.values(), *SOFT]}
    tokenizer.add_special_tokens(marks)
    return tokenizer


def _marks(kinds):
    return [MARKS[kind] for kind in kinds]


def _vocab(tokenizer):
    """A multiple of 64, as real models have it: tensor parallelism divides it."""
    return -(-len(tokenizer) // anything.MULTIPLE) * anything.MULTIPLE


def random_bundle(
    config: dict[str, Any],
    tokenizer: Any,
    source: str,
    seed: int,
    dtype: str,
    coder: Coder | None = None,
) -> Bundle:
    """A bundle of random parameters, of a config.json."""
    cfg = family_of(config["model_type"]).config(config)
    cfg = dataclasses.replace(cfg, grammar=coder.grammar if coder else None)
    model = Model(config["model_type"], cfg)
    return Bundle(
        model=model,
        params=params.init(model.specs(), jax.random.key(seed), jnp.dtype(dtype)),
        tokenizer=tokenizer,
        hf_config=config,
        source=source,
        coder=coder,
    )


def text_config(family, tokenizer, vocab_size, shape, dtype):
    """config.json of a small model; shape = width, layers, heads, key heads."""
    width, layers, heads, kv_heads = shape
    return {
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": width * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "dtype": dtype,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | (_EXPERTS if family == "qwen3_moe" else {})
