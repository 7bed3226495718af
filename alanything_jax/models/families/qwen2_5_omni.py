"""The thinker of Qwen2.5-Omni (arXiv:2503.20215): text, pictures, video and sound in,
text out. Of a full checkpoint, what speaks (talker, token2wav) is passed through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import qwen2_audio, qwen_vl
from alanything_jax.models.families.common import (
    Family,
    base_config,
    sliding,
    text_names,
)
from alanything_jax.models.families.frontend import Configs, media_settings, soft_coder
from alanything_jax.schema import Batch

ARRAYS = (*qwen_vl.ARRAYS, *qwen2_audio.ARRAYS)
# What follows from the others, or is used by the processor alone.
OTHERS = (
    "video_second_per_grid",
    "use_audio_in_video",
    "audio_feature_lengths",
    "mm_token_type_ids",
)


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json, of the thinker alone or of all."""
    hf = hf.get("thinker_config") or hf
    given, sound = hf["vision_config"], hf["audio_config"]
    full = given.get("fullatt_block_indexes", (7, 15, 23, 31))
    ids = {
        kind: hf.get(f"{kind}_token_index", hf.get(f"{kind}_token_id", default))
        for kind, default in (("audio", 151646), ("image", 151655), ("video", 151656))
    }
    vit = qwen_vl.vision_config(
        hf,
        width=given["hidden_size"],
        ffw_width=given["intermediate_size"],
        out_width=given["out_hidden_size"],
        activation="silu",
        norm="rms",
        gated=True,
        fused=False,
        windows=tuple(n not in full for n in range(given["depth"])),
        window_size=given.get("window_size", 112),
        tokens_per_second=hf.get("position_id_per_seconds", 25),
        image_token=ids["image"],
        video_token=ids["video"],
    )
    audio = qwen2_audio.encoder(
        sound,
        frames=2 * sound.get("n_window", 100),
        out_width=sound["output_dim"],
        placeholder=ids["audio"],
        chunked=True,
    )
    text = {"max_window_layers": 28} | dict(hf["text_config"])
    # Only what the thinker itself says is read: its text_config says yes for nothing.
    text["tie_word_embeddings"] = hf.get("tie_word_embeddings", False)
    text, mrope = qwen_vl.text_config(
        {"text_config": text}, 1e6, (16, 24, 24), interleaved=False
    )
    return base_config(
        text, qkv_bias=True, **sliding(text), mrope=mrope, encoders=(vit, audio)
    )


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk, of the thinker alone."""
    vit, audio = cfg.encoders
    mlp = {n: f"{n}_proj" for n in ("gate", "up", "down")}
    merger = ("ln_q", "mlp.0", "mlp.2")
    attn = {
        f"encoders/{vit.name}/layers/attn/{n}/{leaf}": (
            f"visual.blocks.{{}}.attn.{n}.{disk}",
            num_in,
        )
        for n in "qkv"
        for leaf, disk, num_in in (("kernel", "weight", 1), ("bias", "bias", 0))
    }
    return {
        **text_names(),
        **qwen_vl.vision_names(vit, "visual.", mlp, merger),
        **attn,
        **qwen2_audio.encoder_names(audio, "audio_tower.ln_post", "audio_tower.proj"),
    }


def batch(cfg: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> Batch:
    """Of `input_ids`, `attention_mask` [B, T] and media, each kind in the order of its
    placeholders; `video_second_per_grid` [N] tells seconds between frames of videos.

    Raises ValueError: arrays that do not belong together, or an unknown one; the sound
    track of a video.
    """
    tokens, real = inputs.tokens_of(arrays, [*ARRAYS, *OTHERS])
    if np.any(arrays.get("use_audio_in_video", False)):
        raise ValueError(
            "use_audio_in_video: a video's sound between its frames is not supported. "
            "Run the processor without it, and give the sound as an audio of its own."
        )
    seconds = arrays.get("video_second_per_grid")
    if "video_grid_thw" in arrays and seconds is None:
        raise ValueError(
            "video_grid_thw without video_second_per_grid [N], the seconds between a "
            "video's temporal patches: give it as the processor returns it."
        )
    vit, audio = cfg.encoders
    settings = dataclasses.replace(qwen_vl.grid_settings(vit), seconds_first=True)
    found = qwen_vl.sights(vit, settings, arrays, seconds)
    found[audio.placeholder] = qwen2_audio.sounds(audio, arrays)
    if not any(found.values()):
        return inputs.plain_batch(tokens, real)
    found = inputs.grouped(list(found.items()))
    return inputs.with_media(_advancing(cfg), tokens, real, found)


def _advancing(cfg):
    """transformers, too, goes on one past a medium's largest position in this family."""
    mrope = dataclasses.replace(cfg.mrope, advance="max_plus_one")
    return dataclasses.replace(cfg, mrope=mrope)


def coder(
    tokenizer: Any,
    cfg: DecoderConfig,
    hf: Mapping[str, Any],
    processors: Configs,
) -> Coder:
    """`Family.coder`."""
    vit, audio = cfg.encoders
    tokens = {
        "image": vit.image_token,
        "video": vit.video_token,
        "audio": audio.placeholder,
    }
    settings = media_settings(processors, hf)
    return soft_coder(tokenizer, _advancing(cfg), settings, tokens)


THINKER = Family(
    "Qwen2_5OmniThinkerForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=batch,
    renames=(
        (r"^thinker\.", ""),
        (r"^model\.language_model\.", "model."),
        (r"^model\.(?=visual\.|audio_tower\.)", ""),
    ),
    unused=r"talker\.|token2wav\.|audio_tower\.audio_bos_eos_token\.",
    coder=coder,
)
FAMILY = dataclasses.replace(
    THINKER,
    architecture="Qwen2_5OmniForConditionalGeneration",
    files=("spk_dict.pt",),
)
