"""Gemma3 (arXiv:2503.19786), text alone and with its SigLIP tower.

Five sliding layers to a full one, each kind with its own theta; norms by 1 + weight on
both sides of a branch; the tokens of one image see one another both ways.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import towers
from alanything_jax.models.families.common import (
    LAYER_NAMES,
    Family,
    base_config,
    rope,
    text_names,
)
from alanything_jax.models.families.frontend import (
    Configs,
    media_settings,
    named,
    soft_coder,
)
from alanything_jax.schema import Batch

# What a config.json may leave out; hub files of the larger models do.
_DEFAULTS = dict(
    vocab_size=262_208,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    max_position_embeddings=131_072,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    tie_word_embeddings=True,
    hidden_activation="gelu_pytorch_tanh",
)
_LAYER_NAMES = {
    **LAYER_NAMES,
    "attn_post_norm/scale": ("post_attention_layernorm.weight", 0),
    "mlp_norm/scale": ("pre_feedforward_layernorm.weight", 0),
    "mlp_post_norm/scale": ("post_feedforward_layernorm.weight", 0),
}


def text_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json of the text model.

    Raises ValueError: softcapping, attention both ways, or a rope we do not have.
    """
    # `hidden_act` stands in some files, and transformers does not read it.
    hf = _DEFAULTS | {key: value for key, value in hf.items() if key != "hidden_act"}
    for key in (
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if hf.get(key):
            raise ValueError(
                f"{key}={hf[key]!r}: Gemma3's checkpoints have none, and it is not "
                "supported. Set it to null if the weights were trained without."
            )
    kinds = hf.get("layer_types")
    if not kinds:
        period = hf.get("sliding_window_pattern") or 6
        numbers = range(1, hf["num_hidden_layers"] + 1)
        kinds = ["sliding_attention" if n % period else "full" for n in numbers]
    given = hf.get("rope_parameters") or {}
    far = {"rope_theta": hf.get("rope_theta") or 1e6, **(hf.get("rope_scaling") or {})}
    near = {"rope_theta": hf.get("rope_local_base_freq") or 1e4}
    far |= given.get("full_attention") or {}
    near |= given.get("sliding_attention") or {}
    local_theta, scaling = rope({"rope_parameters": near})
    if scaling is not None:
        raise ValueError(
            f"rope_parameters.sliding_attention={near}: only full layers may scale "
            "positions; make its rope_type default."
        )
    bias = bool(hf.get("attention_bias"))
    return base_config(
        hf | {"rope_parameters": far, "rope_scaling": None},
        qkv_bias=bias,
        o_bias=bias,
        norm_plus_one=True,
        norm_place="both",
        qk_norm="rms",
        activation=towers.activation(hf["hidden_activation"], "hidden_activation"),
        query_scale=hf["query_pre_attn_scalar"] ** -0.5,
        embed_scale=hf["hidden_size"] ** 0.5,
        local_theta=local_theta,
        sliding_window=hf["sliding_window"],
        window_layers=tuple(kind == "sliding_attention" for kind in kinds),
    )


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json of the model with a tower."""
    text = hf.get("text_config") or {}
    trunk = text_config(text)
    vision = hf.get("vision_config") or {}
    vit = towers.tower(
        vision,
        "siglip_vision_model",
        out_width=trunk.width,
        placeholder=hf.get("image_token_index", hf.get("image_token_id", 262_144)),
        projector="norm",
    )
    side = math.isqrt(hf.get("mm_tokens_per_image", 256))
    pool = vit.image_size // vit.patch_size // side
    return dataclasses.replace(
        trunk,
        tied=bool(hf.get("tie_word_embeddings", trunk.tied)),
        encoders=(dataclasses.replace(vit, pool=pool),),
    )


def text_names_of(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of the text model's parameters on disk."""
    del cfg
    return text_names(_LAYER_NAMES)


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk."""
    (vit,) = cfg.encoders
    projector, disk = f"encoders/{vit.name}/projector", "multi_modal_projector"
    return {
        **text_names(
            _LAYER_NAMES, "language_model.model.", "language_model.lm_head.weight"
        ),
        **towers.tower_names(vit),
        f"{projector}/norm/scale": (f"{disk}.mm_soft_emb_norm.weight", 0),
        f"{projector}/matrix": (f"{disk}.mm_input_projection_weight", 0),
    }


def inputs_of(cfg: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> Batch:
    """As `towers.with_pixels`; `token_type_ids` [B, T] is 1 on the tokens of images.

    As in transformers, images that touch are one block; without `token_type_ids` the
    blocks follow from the placeholders.

    Raises ValueError: as there, or `token_type_ids` of another shape.
    """
    batch = towers.with_pixels(cfg, arrays, "token_type_ids")
    kinds = arrays.get("token_type_ids")
    if kinds is None and not batch.media:
        return batch
    image = np.asarray(batch.tokens) == cfg.encoders[0].placeholder
    if kinds is not None:
        if np.shape(kinds) != image.shape:
            raise ValueError(
                f"token_type_ids {np.shape(kinds)} and input_ids {image.shape} differ."
            )
        image = np.asarray(kinds) == 1
    first = image & ~np.pad(image[:, :-1], ((0, 0), (1, 0)))
    span = np.where(image, np.cumsum(first, axis=1, dtype=np.int32), 0)
    return batch.replace(span=jnp.asarray(span))


def coder(
    tokenizer: Any, cfg: DecoderConfig, hf: Mapping[str, Any], processors: Configs
) -> Coder:
    """Pictures for the tower; the template writes one token where a picture begins."""
    begin, end = named(
        tokenizer,
        hf.get("boi_token_index", 255_999),
        hf.get("eoi_token_index", 256_000),
    )

    def said(token, medium):
        return f"\n\n{begin}{token * len(medium.outputs)}{end}\n\n"

    return soft_coder(
        tokenizer,
        cfg,
        media_settings(processors, hf),
        {"image": cfg.encoders[0].placeholder},
        {"image": begin},
        {"image": said},
        two_way=True,
    )


TEXT = Family(
    "Gemma3ForCausalLM",
    text_config,
    "Gemma3TextForSequenceClassification",
    names=text_names_of,
)
FAMILY = Family(
    "Gemma3ForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=inputs_of,
    renames=towers.RENAMES,
    coder=coder,
    unused=rf"{towers.PREFIX}(head|embeddings\.position_ids)",
)
