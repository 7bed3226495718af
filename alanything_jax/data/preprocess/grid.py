"""Pictures and videos of any size in patches: Qwen2-VL, 2.5-VL, 3-VL, 2.5-Omni."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.data.media import MediaLimits
from alanything_jax.data.preprocess import images, video
from alanything_jax.data.preprocess.images import Look
from alanything_jax.schema import Medium, Modality


@dataclasses.dataclass(frozen=True)
class GridVision:
    """The first seven come from config.json; the others from the processor's config.

    Attributes:
      patch_size: pixels of a side. merge_size: n where n x n patches are one output.
      temporal_patch_size: frames.
      window_size: pixels of a window of attention; None = no windows.
      position_side: n where the encoder's table of positions is n x n; None = no table.
      tokens_per_second: steps of `grid`'s t in a second of video; None = it counts
        temporal patches. seconds_first: a patch's time in seconds is rounded, then its
        steps (Omni); else the steps between patches are (2.5-VL).
      min_pixels, max_pixels: of a frame; of a clip where `per_clip` (Qwen3-VL's videos).
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int | None = None
    position_side: int | None = None
    tokens_per_second: float | None = None
    seconds_first: bool = False
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    per_clip: bool = False
    sampling: video.Sampling = video.Sampling()
    look: Look = Look()


def medium(
    settings: GridVision,
    array: np.ndarray,
    meta: Mapping[str, Any],
    limits: MediaLimits = MediaLimits(),
) -> Medium:
    """A picture uint8 [h, w, 3], or a video [n, h, w, 3] with `meta["fps"]`.

    Raises MediaError: over a limit, no frame, no picture, or an unknown frame rate where
    the family tells time.
    """
    kind = "video" if array.ndim == 4 else "image"
    images.check(array, limits, kind)
    temporal, seconds = settings.temporal_patch_size, None
    frames = array if kind == "video" else array[None]
    if kind == "video":
        fps = float(meta.get("fps", 0.0))
        kept = video.sample(settings.sampling, len(frames), fps, temporal)
        if settings.tokens_per_second is not None:
            seconds = [temporal / (len(kept) / len(frames) * video.known(fps))]
        frames = frames[kept]
    size = images.smart_size(
        *frames.shape[1:3],
        settings.patch_size * settings.merge_size,
        settings.min_pixels,
        settings.max_pixels,
        (max(len(frames), temporal), temporal) if settings.per_clip else None,
    )
    frames = np.stack([images.resize(f, size, settings.look.resample) for f in frames])
    frames = video.pad_frames(images.normalise(frames, settings.look), temporal)
    values = images.patchify(frames, settings.patch_size, settings.merge_size, temporal)
    grid = [len(frames) // temporal, *(side // settings.patch_size for side in size)]
    made = mediums_of_grid(settings, values, np.array([grid]), kind, seconds)[0]
    if kind == "image":
        return made
    times = video.seconds(kept, video.known(fps), temporal) if fps else ()
    return dataclasses.replace(made, times=tuple(times))


def mediums_of_grid(
    settings: GridVision,
    pixel_values: np.ndarray,
    grid_thw: np.ndarray,
    kind: Modality = "image",
    seconds_per_grid: Sequence[float] | None = None,
) -> list[Medium]:
    """Of an HF processor's `pixel_values` [sum of p, d] and `image_grid_thw` [N, 3], or
    `pixel_values_videos` and `video_grid_thw`.

    Args:
      seconds_per_grid: [N], of each video's temporal patch; None = 1, as transformers.

    Raises ValueError: patches that do not fit the grids, grids that do not fit the merge.
    """
    values = np.asarray(pixel_values, np.float32)
    grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
    ends = np.cumsum(grids.prod(axis=1))
    if values.ndim != 2 or len(values) != (ends[-1] if len(grids) else 0):
        raise ValueError(
            f"pixel values {values.shape} for grids {grids.tolist()} (t, h, w); give one "
            "row for each of their t * h * w patches."
        )
    if (grids[:, 1:] % settings.merge_size).any():
        raise ValueError(
            f"grids {grids.tolist()} (t, h, w); h and w must be multiples of "
            f"merge_size {settings.merge_size}."
        )
    seconds = [1.0] * len(grids) if seconds_per_grid is None else seconds_per_grid
    return [
        _medium(settings, rows, tuple(int(n) for n in grid), kind, float(second))
        for rows, grid, second in zip(
            np.split(values, ends[:-1]), grids, seconds, strict=True
        )
    ]


def _medium(settings, patches, grid, kind, seconds):
    """One medium of its flattened patches and its (t, h, w) in patches."""
    t, h, w = grid
    merge = settings.merge_size
    place = images.places(h, w, merge)
    frame = np.repeat(np.arange(t, dtype=np.int32), h * w)
    arrays = {
        "patches": patches,
        "segment": frame + 1,
        "position": np.tile(place, (t, 1)),
    }
    if settings.window_size is not None:
        side = settings.window_size // merge // settings.patch_size * merge
        down, across = -(-h // side), -(-w // side)
        window = place // side @ np.array([across, 1], np.int32)
        arrays["window"] = np.tile(window, t) + frame * np.int32(down * across) + 1
    if settings.position_side is not None:
        index, weight = _interpolated(place, (h, w), settings.position_side)
        arrays["pos_index"] = np.tile(index, (t, 1))
        arrays["pos_weight"] = np.tile(weight, (t, 1))
    cells = np.indices((t, h // merge, w // merge), dtype=np.int32).reshape(3, -1).T
    if settings.tokens_per_second is not None:
        # In single precision, and cut, as transformers does.
        rate, seconds = np.float32(settings.tokens_per_second), np.float32(seconds)
        turns = cells[:, 0].astype(np.float32)
        first = settings.seconds_first
        turns = turns * seconds * rate if first else turns * (rate * seconds)
        cells[:, 0] = turns.astype(np.int32)
    outputs = np.arange(len(cells), dtype=np.int32)
    return Medium(kind, "vision", arrays, outputs, cells)


def _interpolated(place, size, side):
    """[p, 4] entries of a side x side table around each place, corners on corners, and
    their bilinear weights."""
    taps, weights = [], []
    for at, length in zip(place.T, size):
        source = at.astype(np.float32) * np.float32(side - 1)
        source = source / np.float32(max(length - 1, 1))
        low = np.floor(source)
        taps.append(np.minimum(np.stack([low, low + 1], 1), side - 1).astype(np.int32))
        weights.append(np.stack([low + 1 - source, source - low], 1))
    index = taps[0][:, :, None] * np.int32(side) + taps[1][:, None, :]
    weight = weights[0][:, :, None] * weights[1][:, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)
