"""LLaVA-1.5 (arXiv:2310.03744): a CLIP tower before a Llama-shaped text model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.coder import Coder
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import llama, mistral, qwen2, qwen3, towers
from alanything_jax.models.families.common import Family, text_names
from alanything_jax.models.families.frontend import Configs, media_settings, soft_coder

# Text models, and what a text_config may leave out: hub files say what differs from 7B.
_TRUNKS = {
    "llama": (llama, dict(intermediate_size=11008)),
    "mistral": (
        mistral,
        dict(intermediate_size=14336, num_key_value_heads=8, sliding_window=4096),
    ),
    "qwen2": (qwen2, dict(intermediate_size=22016, vocab_size=151_936)),
    "qwen3": (qwen3, dict(intermediate_size=22016, vocab_size=151_936, head_dim=128)),
}
_SIZES = dict(
    vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32
)


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json.

    Raises ValueError: a text model, tower or choice of features that we do not have.
    """
    text = hf.get("text_config") or {}
    kind = text.get("model_type") or "llama"
    if kind not in _TRUNKS:
        raise ValueError(
            f"text_config.model_type={kind!r}: supported are {sorted(_TRUNKS)}."
        )
    family, sizes = _TRUNKS[kind]
    trunk = family.config_from_hf(_SIZES | sizes | dict(text))
    token = hf.get("image_token_index", hf.get("image_token_id", 32000))
    strategy = hf.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(
            f"vision_feature_select_strategy={strategy!r}: default (without the class "
            "token) or full."
        )
    vit = towers.tower(
        hf.get("vision_config") or {},
        "clip_vision_model",
        out_width=trunk.width,
        placeholder=token,
        keep_class=strategy == "full",
        projector_bias=hf.get("multimodal_projector_bias", True),
        projector_activation=towers.activation(
            hf.get("projector_hidden_act", "gelu"), "projector_hidden_act"
        ),
    )
    if not (vit.class_token or vit.keep_class):
        raise ValueError(
            "vision_feature_select_strategy='default' drops a class token, which a SigLIP "
            "tower has not: set it to 'full'."
        )
    tied = hf.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    vit = dataclasses.replace(vit, taps=_taps(hf, vit.num_layers))
    return dataclasses.replace(trunk, tied=bool(tied), encoders=(vit,))


def _taps(hf, count):
    """`vision_feature_layer` counts hidden states, of which the first precedes layer 0."""
    given = hf.get("vision_feature_layer", -2)
    chosen = [given] if isinstance(given, int) else given
    taps = tuple(n + count + 1 if n < 0 else n for n in chosen)
    if not taps or not all(0 <= n <= count for n in taps):
        raise ValueError(
            f"vision_feature_layer={given} of a tower of {count} layers: choose from "
            f"{-count - 1} to {count}."
        )
    return taps


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk."""
    (vit,) = cfg.encoders
    out = text_names(
        trunk="language_model.model.", head="language_model.lm_head.weight"
    )
    for n in range(2):
        ours, disk = f"encoders/{vit.name}/projector/{n}", "multi_modal_projector"
        out[f"{ours}/kernel"] = (f"{disk}.linear_{n + 1}.weight", 1)
        out[f"{ours}/bias"] = (f"{disk}.linear_{n + 1}.bias", 0)
    return out | towers.tower_names(vit)


def coder(
    tokenizer: Any, cfg: DecoderConfig, hf: Mapping[str, Any], processors: Configs
) -> Coder:
    """Pictures for the tower."""
    settings = media_settings(processors, hf)
    return soft_coder(tokenizer, cfg, settings, {"image": cfg.encoders[0].placeholder})


FAMILY = Family(
    "LlavaForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=towers.with_pixels,
    renames=towers.RENAMES,
    coder=coder,
    unused=rf"{towers.PREFIX}(post_layernorm|head|embeddings\.position_ids)",
)
