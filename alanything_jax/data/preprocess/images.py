"""Pictures as Hugging Face's Pillow image processors treat them, step by step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from einops import rearrange

from alanything_jax.data.media import MediaError, MediaLimits

BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, and those in the configs; 1 is Lanczos
MAX_RATIO = 200  # of the sides of what `smart_size` takes


@dataclasses.dataclass(frozen=True)
class Look:
    """How bytes become what an encoder sees: byte * scale, less mean, over std.

    The mean and deviation are per channel; `resample` is Pillow's number of the filter.
    """

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    scale: float = 1 / 255
    resample: int = BICUBIC


HALF = Look(mean=(0.5,) * 3, std=(0.5,) * 3)


def check(array: np.ndarray, limits: MediaLimits, kind: str = "image") -> None:
    """Raises MediaError: not uint8 [h, w, 3] (a video [n, h, w, 3]), or over a limit."""
    axes = {"image": 3, "video": 4}[kind]
    if array.dtype != np.uint8 or array.ndim != axes or array.shape[-1] != 3:
        shape = "[height, width, 3]" if axes == 3 else "[frames, height, width, 3]"
        raise MediaError(
            f"the {kind} is {array.dtype} {list(array.shape)}; uint8 {shape} is taken."
        )
    if not array.size:
        raise MediaError(f"the {kind} {list(array.shape)} has no frame or no pixel.")
    height, width = array.shape[-3:-1]
    check_pixels(height, width, limits)
    if axes == 4 and len(array) > limits.max_frames:
        raise MediaError(f"{len(array)} frames; allowed are {limits.max_frames}.")
    if array.size > 3 * limits.max_clip_pixels:
        raise MediaError(
            f"{array.size // 3} pixels in all frames; allowed are "
            f"{limits.max_clip_pixels} (max_clip_pixels)."
        )


def check_pixels(height: int, width: int, limits: MediaLimits) -> None:
    """Raises MediaError: more pixels than allowed."""
    if height * width > limits.max_pixels:
        raise MediaError(
            f"{width} x {height} pixels; allowed are {limits.max_pixels} (max_pixels)."
        )


def smart_size(
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    clip: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Height and width in multiples of `factor`, near the ratio, within the limits.

    Args:
      clip: (frames, frames of a temporal patch) where the limits are for all the pixels
        of a clip (Qwen3-VL's videos); None where they are for each frame.

    Raises MediaError: one side is over 200 times the other.
    """
    frames = counted = 1
    if clip is not None:
        frames = clip[0]
        counted = round(frames / clip[1]) * clip[1]
        if min(height, width) < factor:
            grow = max(factor / height, factor / width)
            height, width = int(height * grow), int(width * grow)
    if max(height, width) > MAX_RATIO * min(height, width):
        raise MediaError(
            f"{width} x {height} pixels: one side is over {MAX_RATIO} times the other. "
            "Crop it."
        )
    sides = (height, width)
    out = [round(side / factor) * factor for side in sides]
    if counted * math.prod(out) > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        out = [max(factor, math.floor(s / shrink / factor) * factor) for s in sides]
    elif counted * math.prod(out) < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        out = [math.ceil(s * grow / factor) * factor for s in sides]
    return out[0], out[1]


def resize(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [*size, 3] by Pillow's filter; `size` is (height, width)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], resample))


def short_side(height: int, width: int, edge: int) -> tuple[int, int]:
    """(height, width) in pixels with the shorter side at `edge`."""
    short, long = sorted((height, width))
    grown = int(edge * long / short)
    return (grown, edge) if width <= height else (edge, grown)


def long_side(height: int, width: int, edge: int, least: int) -> tuple[int, int]:
    """(height, width) in pixels with the longer side at `edge`, none below `least`."""
    scale = edge / max(height, width)
    return max(round(height * scale), least), max(round(width * scale), least)


def centre_crop(image: np.ndarray, edge: int) -> np.ndarray:
    """The middle [edge, edge, 3] of a picture that is no smaller."""
    top, left = ((side - edge) // 2 for side in image.shape[:2])
    return image[top : top + edge, left : left + edge]


def pad_to_square(image: np.ndarray, mean: tuple[float, ...]) -> np.ndarray:
    """The picture in the middle of a square of its longer side, on the mean colour."""
    edge = max(image.shape[:2])
    out = np.empty((edge, edge, 3), np.uint8)
    out[:] = [int(value * 255) for value in mean]
    top, left = ((edge - side) // 2 for side in image.shape[:2])
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out


def normalise(image: np.ndarray, look: Look) -> np.ndarray:
    """uint8 [..., h, w, 3] -> float32 [..., 3, h, w]."""
    values = (image * np.float64(look.scale)).astype(np.float32)
    values = (values - np.float32(look.mean)) / np.float32(look.std)
    return np.moveaxis(values, -1, -3)


def patchify(
    frames: np.ndarray, patch: int, block: int = 1, temporal: int = 1
) -> np.ndarray:
    """float32 [n, 3, h, w] -> [p, 3 * temporal * patch * patch]: patches in raster order
    of blocks of block x block, raster order in a block; values (channel, frame, row, col).
    """
    return rearrange(
        frames,
        "(t k) c (a i h) (b j w) -> (t a b i j) (c k h w)",
        **{"k": temporal, "i": block, "j": block, "h": patch, "w": patch},
    )


def places(height: int, width: int, block: int) -> np.ndarray:
    """[height * width, 2] int32: row and column of each patch, in `patchify`'s order."""
    grid = np.indices((height, width), dtype=np.int32)
    return rearrange(grid, "s (a i) (b j) -> (a b i j) s", i=block, j=block)
