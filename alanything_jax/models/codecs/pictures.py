"""Pixels and codes on their way to a codec's nets and back, as image processors do it.

A codec has `scale`, `mean` and `std`: its nets take (uint8 * scale - mean) / std.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Janus's processor never makes a side shorter.
_SHORTEST = 14


def check(media: np.ndarray, rank: int) -> None:
    """Raises ValueError: not uint8 [(frames,) height, width, 3]."""
    fits = media.ndim == rank and media.shape[-1] == 3 and 0 not in media.shape
    if not fits or media.dtype != np.uint8:
        axes = "frames, height, width, 3" if rank == 4 else "height, width, 3"
        raise ValueError(f"pixels are {media.dtype} {media.shape}, not uint8 [{axes}].")


def resized(media: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3] by a filter of PIL."""
    from PIL import Image

    return np.asarray(Image.fromarray(media).resize((width, height), resample))


def cropped(media: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """Resized until both sides suffice; the middle of it, uint8 [height, width, 3]."""
    h, w = media.shape[:2]
    if w * height >= h * width:
        h, w = height, int(height * w / h)
    else:
        h, w = int(width * h / w), width
    media = resized(media, h, w, resample)
    top, left = (h - height) // 2, (w - width) // 2
    return media[top : top + height, left : left + width]


def padded(
    media: np.ndarray, side: int, resample: int, colour: Sequence[int]
) -> np.ndarray:
    """Resized until the longer side fits; the middle of a square of one colour."""
    longest = max(media.shape[:2])
    least = min(side, _SHORTEST)
    h, w = (max(round(n * (side / longest)), least) for n in media.shape[:2])
    out = np.full((side, side, 3), colour, np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    out[top : top + h, left : left + w] = resized(media, h, w, resample)
    return out


def whole_patches(
    height: int, width: int, patch: int, least: int, most: int
) -> tuple[int, int]:
    """Sides of whole patches, near the given shape, of `least` to `most` pixels in all.

    Raises ValueError: one side is over 200 times the other.
    """
    sides = (height, width)
    if max(sides) > 200 * min(sides):
        raise ValueError(
            f"{height} x {width} pixels: one side over 200 times the other."
        )
    h, w = (round(side / patch) * patch for side in sides)
    if h * w > most:
        by = math.sqrt(height * width / most)
        h, w = (max(1, math.floor(side / by / patch)) * patch for side in sides)
    elif h * w < least:
        by = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * by / patch) * patch for side in sides)
    return h, w


def normalised(codec: Any, media: np.ndarray) -> np.ndarray:
    """uint8 pixels -> float32 as the nets take them."""
    mean, std = (np.array(value, np.float32) for value in (codec.mean, codec.std))
    return ((media * codec.scale).astype(np.float32) - mean) / std


def painted(codec: Any, pixels: Any) -> np.ndarray:
    """The inverse of `normalised`, rounded (transformers' postprocess cuts)."""
    pixels = (np.asarray(pixels) * np.array(codec.std) + codec.mean) / codec.scale
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def as_grid(codec: Any, codes: np.ndarray) -> np.ndarray:
    """Codes [length] in the codec's grid; those that lie in a grid as they are.

    Raises ValueError: another number of codes, or one out of range.
    """
    codes = np.asarray(codes)
    if codes.shape == (codec.length,):
        codes = codes.reshape(codec.grid)
    if codes.ndim != len(codec.grid) or not codes.size:
        raise ValueError(
            f"codes {codes.shape}; the codec has [{codec.length}], or a grid such as "
            f"{list(codec.grid)}."
        )
    if not 0 <= codes.min() <= codes.max() < codec.size:
        raise ValueError(
            f"codes {codes.min()} .. {codes.max()}; the codec has 0 .. {codec.size - 1}."
        )
    return codes


def preprocessing(processor: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a codec that a preprocessor_config.json states."""
    keys = {
        "scale": "rescale_factor",
        "mean": "image_mean",
        "std": "image_std",
        "resample": "resample",
    }
    stated = {ours: processor.get(theirs) for ours, theirs in keys.items()}
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in stated.items()
        if value is not None
    }
