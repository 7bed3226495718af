"""Janus and Janus-Pro (arXiv:2410.13848, 2501.17811): they read one way and draw another.

Pictures are read through a SigLIP tower. They are drawn as codes of a VQ-GAN that are no
ids of the vocabulary: a table, an aligner and a head of their own, see `generation.images`.
Those, as the codec, pass through training and export untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models import layers
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.encoders.vit import ViT
from alanything_jax.models.families import llama, towers
from alanything_jax.models.families.codes import Codes
from alanything_jax.models.families.common import Family, text_names
from alanything_jax.models.families.frontend import Configs, media_settings, soft_coder
from alanything_jax.schema import Batch, Medium

_PREFIX = "model.vision_model."
# What draws: table, aligner, head.
_DRAWING = ("embeddings", "aligner", "head")


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json.

    Raises ValueError: a text model or tower that we do not have.
    """
    text = hf.get("text_config") or {}
    kind = text.get("model_type") or "llama"
    if kind != "llama":
        raise ValueError(f"text_config.model_type={kind!r}: supported is llama.")
    sizes = dict(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    trunk = llama.config_from_hf(sizes | dict(text))
    # Files of transformers 4 leave it out; their head is on disk.
    tied = hf.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    vit = _tower(hf.get("vision_config") or {}, trunk.width, hf)
    return dataclasses.replace(trunk, tied=bool(tied), encoders=(vit,))


def _tower(vision, out_width, hf):
    given = dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=384,
        patch_size=16,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        mlp_ratio=4.0,
        attention_bias=True,
        depth=2,
    ) | dict(vision)
    if given.get("use_qk_norm"):
        raise ValueError("vision_config.use_qk_norm=true is not supported.")
    if given.get("projection_dim", out_width) != out_width:
        raise ValueError(
            f"vision_config.projection_dim={given['projection_dim']} differs from the text "
            f"model's hidden_size {out_width}: set them equal."
        )
    act = towers.activation(given["hidden_act"], "vision_config.hidden_act")
    return ViT(
        image_size=given["image_size"],
        patch_size=given["patch_size"],
        width=given["hidden_size"],
        ffw_width=int(given["hidden_size"] * given["mlp_ratio"]),
        num_layers=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        out_width=out_width,
        placeholder=hf.get("image_token_id", 100_581),
        norm_eps=given["layer_norm_eps"],
        activation=act,
        qkv_bias=given["attention_bias"],
        projector_layers=given["depth"],
        projector_activation=act,
    )


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk."""
    (vit,) = cfg.encoders
    out = text_names(trunk="model.language_model.")
    for n in range(vit.projector_layers):
        ours = f"encoders/{vit.name}/projector/{n}"
        disk = f"model.aligner.{f'hidden_layers.{n - 1}' if n else 'fc1'}"
        out[f"{ours}/kernel"] = (f"{disk}.weight", 1)
        out[f"{ours}/bias"] = (f"{disk}.bias", 0)
    tower = towers.tower_names(vit, _PREFIX)
    return out | {
        path: (name.replace("out_proj", "projection_layer"), *more)
        for path, (name, *more) in tower.items()
    }


def inputs_of(
    cfg: DecoderConfig, arrays: Mapping[str, np.ndarray], codes: Codes | None
) -> Batch:
    """As `towers.with_pixels`."""
    del codes
    return towers.with_pixels(cfg, arrays)


def coder(
    tokenizer: Any, cfg: DecoderConfig, hf: Any, processors: Configs, codes: Codes
) -> Coder:
    """Pictures of prompts between `<begin_of_image>` and `<end_of_image>`."""
    del codes
    special = tokenizer.special_tokens_map
    first = special.get("boi_token", "<begin_of_image>")
    last = special.get("eoi_token", "<end_of_image>")

    def said(token: str, medium: Medium) -> str:
        return first + token * len(medium.outputs) + last

    settings = media_settings(processors, hf)
    tokens = {"image": cfg.encoders[0].placeholder}
    return soft_coder(tokenizer, cfg, settings, tokens, said={"image": said})


def drawing(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What draws, from a checkpoint's tensors: {"table", "aligner", "head"}.

    The table is [codes, d]; the others are lists of linear layers.
    """
    own = {
        name.partition("generation_")[2]: value
        for name, value in tensors.items()
        if "generation_" in name
    }

    def linear(name):
        return {"kernel": own[f"{name}.weight"].T, "bias": own[f"{name}.bias"]}

    hidden = [n for n in own if n.startswith("aligner.hidden_layers.")]
    deep = [f"aligner.hidden_layers.{n}" for n in range(len(hidden) // 2)]
    return {
        "table": own["embeddings.weight"],
        "aligner": [linear(name) for name in ("aligner.fc1", *deep)],
        "head": [linear(f"head.{name}") for name in ("proj_out", "vision_head")],
    }


def mlp(x: jax.Array, stack: list[dict[str, jax.Array]], activation: str) -> jax.Array:
    """x [..., in] through linear layers, the activation between them.

    Args:
      stack: a layer each: {"kernel": [in, out], "bias": [out]}.
    """
    for n, layer in enumerate(stack):
        x = layers.ACTIVATIONS[activation](x) if n else x
        x = layers.dense(x, layer, None, 1, 1.0)
    return x


FAMILY = Family(
    "JanusForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=inputs_of,
    unused=rf"model\.(vqmodel|generation_({'|'.join(_DRAWING)}))\.",
    codes=lambda hf, codec, params: Codes(codec, params),
    drawing=drawing,
    coder=coder,
)
