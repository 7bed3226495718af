"""A family's settings, from the configs beside its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.preprocess import audio, images
from alanything_jax.data.preprocess.audio import MelAudio
from alanything_jax.data.preprocess.grid import GridVision
from alanything_jax.data.preprocess.images import HALF, Look
from alanything_jax.data.preprocess.square import SquareVision
from alanything_jax.data.preprocess.video import Sampling
from alanything_jax.schema import Modality

Config = Mapping[str, Any]


def settings_from_hf(
    config: Config, hf_model_config: Config
) -> dict[Modality, SquareVision | GridVision | MelAudio]:
    """Settings of each modality that the family takes.

    Args:
      config: parsed preprocessor_config.json; or processor_config.json, where each lies
        under "image_processor", "video_processor", "feature_extractor" (put a
        video_preprocessor_config.json there). May be empty: then everything that does not
        follow from config.json is the default of the family's processor.
      hf_model_config: parsed config.json.

    Raises ValueError: a family with no media, or a setting that is not supported.
    """
    family = hf_model_config.get("model_type")
    if family not in _FAMILIES:
        raise ValueError(
            f"model_type {family!r} has no media preprocessing; known are "
            f"{', '.join(sorted(_FAMILIES))}."
        )
    image = config.get("image_processor", config)
    parts = {
        "image": image,
        "video": config.get("video_processor", image),
        "audio": config.get("feature_extractor", config),
    }
    for kind in ("image", "video"):
        for step in ("do_resize", "do_rescale", "do_normalize"):
            _must(parts[kind], step, True)
    return _FAMILIES[family](parts, hf_model_config)


def _must(config: Config, key: str, value: Any) -> None:
    """Raises ValueError: the config has another value; null and none are the default."""
    if config.get(key) not in (None, value):
        raise ValueError(
            f"{key} = {config[key]!r} in the model's configs; this package takes "
            f"{value!r} there. Change it, or prepare the arrays yourself."
        )


def _look(config: Config, default: Look) -> Look:
    return Look(
        mean=tuple(config.get("image_mean") or default.mean),
        std=tuple(config.get("image_std") or default.std),
        scale=config.get("rescale_factor") or default.scale,
        resample=config.get("resample") or default.resample,
    )


def _square(size: Any, image_size: int, name: str) -> None:
    """Raises ValueError: `size` of the processor is not the model's."""
    if isinstance(size, Mapping):
        size = size.get("height") if size.get("height") == size.get("width") else size
    if size != image_size:
        raise ValueError(
            f"{name} {size} in the processor's config; the model's pictures are "
            f"{image_size} x {image_size} (vision_config.image_size)."
        )


def _llava(parts, hf):
    config, vision = parts["image"], hf.get("vision_config", {})
    _must(vision, "model_type", "clip_vision_model")
    _must(config, "do_center_crop", True)
    size = vision.get("image_size", 224)
    if config.get("crop_size"):
        _square(config["crop_size"], size, "crop_size")
    edge = config.get("size")
    edge = edge.get("shortest_edge") if isinstance(edge, Mapping) else edge
    if config.get("size") and edge is None:
        _square(config["size"], size, "size")
        fit = "stretch"
    else:
        fit = "pad" if config.get("do_pad") else "crop"
    return {
        "image": SquareVision(
            image_size=size,
            patch_size=vision.get("patch_size", 32),
            class_token=True,
            keep_class=hf.get("vision_feature_select_strategy") == "full",
            fit=fit,
            edge=edge,
            look=_look(config, Look()),
        )
    }


def _gemma3(parts, hf):
    config, vision = parts["image"], hf.get("vision_config", {})
    _must(config, "do_pan_and_scan", False)
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if config.get("size"):
        _square(config["size"], size, "size")
    side = math.isqrt(hf.get("mm_tokens_per_image", 256))
    look = _look(config, Look(HALF.mean, HALF.std, resample=images.BILINEAR))
    return {"image": SquareVision(size, patch, pool=size // patch // side, look=look)}


def _janus(parts, hf):
    config, vision = parts["image"], hf.get("vision_config", {})
    _must(config, "do_pad", True)
    size = vision.get("image_size", 384)
    if config.get("size"):
        _square(config["size"], size, "size")
    return {
        "image": SquareVision(
            image_size=size,
            patch_size=vision.get("patch_size", 16),
            fit="inside",
            least=config.get("min_size", 14),
            look=_look(config, Look()),
        )
    }


def _pixels(config, least, most):
    """The limits of `smart_size`, in the old spelling or the new."""
    size = config.get("size") or {}
    least = size.get("shortest_edge", size.get("min_pixels", least))
    most = size.get("longest_edge", size.get("max_pixels", most))
    return {
        "min_pixels": config.get("min_pixels") or least,
        "max_pixels": config.get("max_pixels") or most,
    }


def _sampling(config, on, fps, ends):
    """How a video processor samples; `on` and `fps` where the config does not say."""
    _must(config, "cap_pixels_per_frame", False)
    if not config.get("do_sample_frames", on):
        return Sampling()
    number = config.get("num_frames")
    fps = None if number else config.get("fps") or fps
    least, most = config.get("min_frames") or 4, config.get("max_frames") or 768
    return Sampling(fps, number, least, most, ends)


def _qwen(parts, vision, patch, **model):
    """Pictures and videos; `model` is what the family's encoder adds."""
    third = model.get("position_side") is not None
    shape = {
        "patch_size": vision.get("patch_size", patch),
        "merge_size": vision.get("spatial_merge_size", 2),
        "temporal_patch_size": vision.get("temporal_patch_size", 2),
    }
    for part in (parts["image"], parts["video"]):
        for key, value in shape.items():
            _must(part, key, value)
    video, unit = parts["video"], (32 if third else 28) ** 2
    return {
        "image": GridVision(
            **shape,
            **model,
            **_pixels(parts["image"], 56 * 56, 28 * 28 * 1280),
            look=_look(parts["image"], Look()),
        ),
        "video": GridVision(
            **shape,
            **model,
            **_pixels(video, 128 * unit, 768 * unit),
            per_clip=third,
            sampling=_sampling(video, on=third, fps=2.0, ends=third),
            look=_look(video, HALF if third else Look()),
        ),
    }


def _qwen2_vl(parts, hf):
    return _qwen(parts, hf.get("vision_config", {}), 14)


def _qwen2_5_vl(parts, hf):
    vision = hf.get("vision_config", {})
    return _qwen(
        parts,
        vision,
        14,
        window_size=vision.get("window_size", 112),
        tokens_per_second=vision.get("tokens_per_second", 4),
    )


def _qwen3_vl(parts, hf):
    vision = hf.get("vision_config", {})
    side = math.isqrt(vision.get("num_position_embeddings", 2304))
    return _qwen(parts, vision, 16, position_side=side)


def _mel(config, encoder, max_frames, chunk):
    bins = encoder.get("num_mel_bins", 128)
    fixed = {"feature_size": bins, "sampling_rate": audio.RATE, "n_fft": audio.WINDOW}
    fixed |= {"hop_length": audio.HOP, "dither": 0.0}
    for key, value in fixed.items():
        _must(config, key, value)
    return MelAudio(bins, max_frames, chunk)


def _qwen2_audio(parts, hf):
    encoder, config = hf.get("audio_config", {}), parts["audio"]
    frames = 2 * encoder.get("max_source_positions", 1500)
    _must(config, "chunk_length", frames * audio.HOP // audio.RATE)
    return {"audio": _mel(config, encoder, frames, None)}


def _omni(parts, hf):
    hf = hf.get("thinker_config", hf)
    vision, encoder = hf.get("vision_config", {}), hf.get("audio_config", {})
    frames = (parts["audio"].get("chunk_length") or 300) * audio.RATE // audio.HOP
    # Its processor sets the limits of a video's frames itself, whatever the config says.
    size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
    video = {**parts["video"], "size": size, "min_pixels": None, "max_pixels": None}
    return _qwen(
        {**parts, "video": video},
        vision,
        14,
        window_size=vision.get("window_size", 112),
        tokens_per_second=hf.get("position_id_per_seconds", 25),
        seconds_first=True,
    ) | {
        "audio": _mel(parts["audio"], encoder, frames, 2 * encoder.get("n_window", 100))
    }


_FAMILIES = {
    "llava": _llava,
    "gemma3": _gemma3,
    "janus": _janus,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_omni": _omni,
    "qwen2_5_omni_thinker": _omni,
}
