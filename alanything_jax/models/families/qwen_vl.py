"""What Qwen2-VL, 2.5-VL and 3-VL share: their configs, their inputs, their disk names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.data.preprocess import GridVision, mediums_of_grid
from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig, MRope
from alanything_jax.models.encoders.qwen_vit import QwenVit
from alanything_jax.models.families.common import Names
from alanything_jax.models.families.frontend import (
    Configs,
    media_settings,
    named,
    soft_coder,
)
from alanything_jax.models.families.towers import activation
from alanything_jax.schema import Batch, Medium

# Placeholder's attribute, kind, and the names of a HF processor's arrays.
KINDS = (
    ("image_token", "image", "pixel_values", "image_grid_thw"),
    ("video_token", "video", "pixel_values_videos", "video_grid_thw"),
)
ARRAYS = tuple(name for *_, pixels, grid in KINDS for name in (pixels, grid))
OTHERS = ("second_per_grid_ts", "mm_token_type_ids")


def text_config(
    hf: Mapping[str, Any], theta: float, sections: tuple[int, ...], interleaved: bool
) -> tuple[dict[str, Any], MRope]:
    """The decoder's part of a config.json, as `base_config` reads it, and its M-RoPE.

    It lies under `text_config`, in old files at the top; there the rope is of a type
    "mrope". `theta` and `sections` are what transformers takes where none are given.
    """
    text = dict(hf.get("text_config") or hf)
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_type"] = "default" if kind == "mrope" else kind
    rope.setdefault("rope_theta", text.get("rope_theta") or theta)
    sections = tuple(rope.get("mrope_section") or sections)
    text |= {
        "rope_parameters": rope,
        "rope_scaling": None,
        "max_window_layers": text.get("max_window_layers", 80),
        "tie_word_embeddings": bool(
            hf.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        ),
    }
    return text, MRope(sections, interleaved)


def vision_config(hf: Mapping[str, Any], **family: Any) -> QwenVit:
    """The encoder's fields that the families spell alike, and what the family adds.

    Raises ValueError: an activation we do not have.
    """
    given = hf["vision_config"]
    fields = dict(
        num_layers=given["depth"],
        num_heads=given["num_heads"],
        patch_size=given.get("patch_size", 14),
        temporal_patch_size=given.get("temporal_patch_size", 2),
        merge_size=given.get("spatial_merge_size", 2),
        channels=given.get("in_channels", 3),
        theta=(given.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
        image_token=hf.get("image_token_id", 151655),
        video_token=hf.get("video_token_id", 151656),
    )
    if "hidden_act" in given:
        act = activation(given["hidden_act"], "vision_config.hidden_act")
        family["activation"] = act
    return QwenVit(**(fields | family))


def batch(
    cfg: DecoderConfig, arrays: Mapping[str, np.ndarray], by_frame: bool = False
) -> Batch:
    """`Family.inputs`. Where positions are follows from the placeholders alone;
    without media these are ids like all others, as in transformers.

    Args:
      by_frame: each frame of a video has placeholders of its own, with text between.

    Raises ValueError: arrays that do not belong together, or an unknown one.
    """
    tokens, real = inputs.tokens_of(arrays, [*ARRAYS, *OTHERS])
    seconds = arrays.get("second_per_grid_ts")
    vit = cfg.encoders[0]
    found = sights(vit, grid_settings(vit), arrays, seconds, by_frame)
    if not found:
        return inputs.plain_batch(tokens, real)
    return inputs.with_media(cfg, tokens, real, found)


def sights(
    vit: QwenVit,
    settings: GridVision,
    arrays: Mapping[str, np.ndarray],
    seconds_per_grid: Sequence[float] | None,
    by_frame: bool = False,
) -> dict[int, list[Medium]]:
    """Pictures and videos of a HF processor's arrays, by the id of their placeholder.

    Raises ValueError: pixels without grids, or grids that they, or seconds, do not fit.
    """
    found = {}
    for token, kind, pixels, grid in KINDS:
        if (pixels in arrays) != (grid in arrays):
            raise ValueError(f"give {pixels} and {grid} together, or neither.")
        if pixels not in arrays:
            continue
        grids = np.asarray(arrays[grid], np.int64).reshape(-1, 3)
        seconds = seconds_per_grid if kind == "video" else None
        if seconds is not None and len(seconds) != len(grids):
            raise ValueError(
                f"seconds per grid of {len(seconds)} videos, and {grid} of {len(grids)}: "
                "give one for each."
            )
        if by_frame:
            grids = np.repeat(grids, grids[:, 0], axis=0)
            grids[:, 0], seconds = 1, None
        found[getattr(vit, token)] = mediums_of_grid(
            settings, arrays[pixels], grids, kind, seconds
        )
    return found


def grid_settings(vit: QwenVit) -> GridVision:
    """How patches are laid out for this encoder; limits of size are not in its config."""
    return GridVision(
        patch_size=vit.patch_size,
        merge_size=vit.merge_size,
        temporal_patch_size=vit.temporal_patch_size,
        window_size=vit.window_size,
        position_side=round(vit.table_size**0.5) or None,
        tokens_per_second=vit.tokens_per_second,
    )


def vision_names(
    vit: QwenVit, prefix: str, mlp: Mapping[str, str], merger: tuple[str, str, str]
) -> Names:
    """Disk names of the encoder's parameters.

    Args:
      prefix: of all of them. mlp: our names of a feed-forward's parts -> theirs.
      merger: their names of a merger's norm, first and second layer.
    """
    patch = (vit.patch_size,) * 2
    linear = {
        "patch": (
            "patch_embed.proj",
            1,
            (vit.width, vit.channels, vit.temporal_patch_size, *patch),
        ),
        "layers/attn/qkv": ("blocks.{}.attn.qkv", 1),
        "layers/attn/o": ("blocks.{}.attn.proj", 2),
    }
    linear |= {f"layers/mlp/{n}": (f"blocks.{{}}.mlp.{x}", 1) for n, x in mlp.items()}
    norms = {
        "layers/attn_norm": "blocks.{}.norm1",
        "layers/mlp_norm": "blocks.{}.norm2",
    }
    for ours, theirs in (("merger", "merger"), ("deep", "deepstack_merger_list.{}")):
        norm, up, down = (f"{theirs}.{name}" for name in merger)
        norms[f"{ours}/norm"] = norm
        linear |= {f"{ours}/up": (up, 1), f"{ours}/down": (down, 1)}
    out = {"table": ("pos_embed.weight", 0)}
    for path, (name, *more) in linear.items():
        out[f"{path}/kernel"] = (f"{name}.weight", *more)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    for path, name in norms.items():
        out[f"{path}/scale"] = (f"{name}.weight", 0)
        out[f"{path}/bias"] = (f"{name}.bias", 0)
    return {
        f"encoders/{vit.name}/{path}": (f"{prefix}{name}", *more)
        for path, (name, *more) in out.items()
    }


def coder(
    tokenizer: Any,
    cfg: DecoderConfig,
    hf: Mapping[str, Any],
    configs: Configs,
    by_frame: bool = False,
) -> Coder:
    """`Family.coder`; `by_frame`: as in `batch`."""
    vit = cfg.encoders[0]
    tokens = {"image": vit.image_token, "video": vit.video_token}
    settings = media_settings(configs, hf)
    if not by_frame:
        return soft_coder(tokenizer, cfg, settings, tokens)
    start, end, pad = named(
        tokenizer,
        hf.get("vision_start_token_id", 151652),
        hf.get("vision_end_token_id", 151653),
        vit.video_token,
    )

    def said(token, video):
        frame = f"{start}{token * (len(video.outputs) // len(video.times))}{end}"
        return "".join(f"<{time:.1f} seconds>{frame}" for time in video.times)

    return soft_coder(
        tokenizer,
        cfg,
        settings,
        tokens,
        {"video": f"{start}{pad}{end}"},
        {"video": said},
    )
