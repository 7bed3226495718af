"""Qwen2-Audio (arXiv:2407.10759): Qwen2 behind Whisper's encoder of 30 seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.data.preprocess import MelAudio, mediums_of_mel
from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.encoders.audio import AudioEncoder
from alanything_jax.models.families import towers
from alanything_jax.models.families.common import (
    Family,
    base_config,
    sliding,
    text_names,
)
from alanything_jax.models.families.frontend import Configs, media_settings, soft_coder
from alanything_jax.schema import Batch, Medium

# What a config.json may leave out; the hub's do.
_TEXT = dict(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=22_016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32_768,
    rope_theta=10_000.0,
)
_AUDIO = dict(
    num_mel_bins=128,
    d_model=1280,
    encoder_layers=32,
    encoder_attention_heads=20,
    encoder_ffn_dim=5120,
    activation_function="gelu",
    max_source_positions=1500,
)
ARRAYS = ("input_features", "feature_attention_mask")


def encoder(given: Mapping[str, Any], **family: Any) -> AudioEncoder:
    """The encoder of an `audio_config`, and what the family adds.

    Raises ValueError: an activation or a length that we do not have.
    """
    given = _AUDIO | dict(given)
    return AudioEncoder(
        bins=given["num_mel_bins"],
        width=given["d_model"],
        ffw_width=given["encoder_ffn_dim"],
        num_layers=given["encoder_layers"],
        num_heads=given["encoder_attention_heads"],
        activation=towers.activation(
            given["activation_function"], "audio_config.activation_function"
        ),
        **family,
    )


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json.

    Raises ValueError: a text model that is no Qwen2.
    """
    text = _TEXT | dict(hf.get("text_config") or {})
    if text.get("model_type", "qwen2") != "qwen2":
        raise ValueError(
            f"text_config.model_type={text['model_type']!r}: only qwen2 is supported."
        )
    # transformers never ties its head, whatever the config says.
    text["tie_word_embeddings"] = False
    given = hf.get("audio_config") or {}
    audio = encoder(
        given,
        frames=2 * given.get("max_source_positions", _AUDIO["max_source_positions"]),
        out_width=text["hidden_size"],
        placeholder=hf.get("audio_token_index", hf.get("audio_token_id", 151_646)),
    )
    return base_config(text, qkv_bias=True, **sliding(text), encoders=(audio,))


def encoder_names(cfg: AudioEncoder, norm: str, projector: str) -> dict[str, tuple]:
    """Names on disk of the encoder's parameters; of its last norm and projector, given."""
    layer, width = "audio_tower.layers.{}.", cfg.width
    linears = {
        "conv1": ("audio_tower.conv1", 2, (width, cfg.bins, 3)),
        "conv2": ("audio_tower.conv2", 2, (width, width, 3)),
        **{f"layers/attn/{n}": (f"{layer}self_attn.{n}_proj", 1) for n in "qkv"},
        "layers/attn/o": (f"{layer}self_attn.out_proj", 2),
        "layers/mlp/up": (f"{layer}fc1", 1),
        "layers/mlp/down": (f"{layer}fc2", 1),
        "projector": (projector, 1),
    }
    norms = {
        "layers/attn_norm": f"{layer}self_attn_layer_norm",
        "layers/mlp_norm": f"{layer}final_layer_norm",
        "norm": norm,
    }
    out: dict[str, tuple] = {"position": ("audio_tower.embed_positions.weight", 0)}
    for path, (name, *more) in linears.items():
        out[f"{path}/kernel"] = (f"{name}.weight", *more)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    for path, name in norms.items():
        out[f"{path}/scale"] = (f"{name}.weight", 0)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    return {f"encoders/{cfg.name}/{path}": entry for path, entry in out.items()}


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk."""
    (audio,) = cfg.encoders
    text = text_names(
        trunk="language_model.model.", head="language_model.lm_head.weight"
    )
    projector = "multi_modal_projector.linear"
    return text | encoder_names(audio, "audio_tower.layer_norm", projector)


def sounds(cfg: AudioEncoder, arrays: Mapping[str, np.ndarray]) -> list[Medium]:
    """The media of `input_features` [N, bins, frames] and `feature_attention_mask`.

    Raises ValueError: one without the other, or a shape that is not the encoder's.
    """
    given = [name for name in ARRAYS if name in arrays]
    if not given:
        return []
    if len(given) < len(ARRAYS):
        raise ValueError(f"give {' and '.join(ARRAYS)} together, or neither.")
    settings = MelAudio(cfg.bins, cfg.frames, cfg.frames if cfg.chunked else None)
    return mediums_of_mel(settings, *(arrays[name] for name in ARRAYS))


def batch(cfg: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> Batch:
    """Of `input_ids`, `attention_mask` [B, T] and, in the order of their placeholders,
    sounds; without any, placeholders are ids like all others, as in transformers.

    Raises ValueError: arrays or placeholders that do not fit, or an unknown array.
    """
    (audio,) = cfg.encoders
    tokens, real = inputs.tokens_of(arrays, ARRAYS)
    media = sounds(audio, arrays)
    if not media:
        return inputs.plain_batch(tokens, real)
    return inputs.with_media(cfg, tokens, real, {audio.placeholder: media})


def coder(
    tokenizer: Any,
    cfg: DecoderConfig,
    hf: Mapping[str, Any],
    processors: Configs,
) -> Coder:
    """`Family.coder`."""
    settings = media_settings(processors, hf)
    tokens = {"audio": cfg.encoders[0].placeholder}
    return soft_coder(tokenizer, cfg, settings, tokens)


FAMILY = Family(
    "Qwen2AudioForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=batch,
    renames=(
        (r"^model\.(?=audio_tower\.|multi_modal_projector\.)", ""),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
    coder=coder,
)
