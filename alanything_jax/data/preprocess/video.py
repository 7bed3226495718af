"""Which frames of a video are kept, and when they are shown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from alanything_jax.data.media import MediaError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Frames are taken at `fps` a second, or `num_frames` in all; every frame, if neither.

    Attributes:
      min_frames, max_frames: bounds of the number taken by `fps`.
      ends: evenly from the first frame to the last, as Qwen3-VL does; else evenly from
        the first, in a multiple of a temporal patch, as Qwen2-VL does.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    ends: bool = False


def sample(sampling: Sampling, total: int, fps: float, temporal: int = 2) -> np.ndarray:
    """Indices [n] int64 of the frames to keep of `total`, shown at `fps`.

    Raises MediaError: no frame, more frames asked for than there are, or a sampling by
    `fps` of a video whose frame rate is not known (0).
    """
    if total < 1:
        raise MediaError("the video has no frame.")
    if sampling.fps is None and sampling.num_frames is None:
        return np.arange(total)
    if sampling.num_frames is not None:
        wanted = sampling.num_frames
        if not sampling.ends:
            wanted = round(wanted / temporal) * temporal
        if not 0 < wanted <= total:
            raise MediaError(
                f"{sampling.num_frames} frames are asked of a video of {total}; set "
                f"num_frames to at most that, or sample by fps."
            )
    else:
        wanted = total / known(fps) * sampling.fps
        if sampling.ends:
            wanted = min(max(int(wanted), sampling.min_frames), sampling.max_frames)
            wanted = min(wanted, total)
        else:
            most = min(sampling.max_frames, total) // temporal * temporal
            wanted = min(max(wanted, sampling.min_frames), most)
            # One frame is kept where it is the only one; transformers divides by 0.
            wanted = max(math.floor(wanted / temporal) * temporal, 1)
    if sampling.ends:
        return np.linspace(0, total - 1, wanted).round().astype(np.int64)
    # Single precision, as torch.arange gives: 6.99999999 is frame 7.
    return np.arange(0, total, total / wanted).astype(np.float32).astype(np.int64)


def known(fps: float) -> float:
    """The frame rate. Raises MediaError: it is 0, which stands for unknown."""
    if not 0 < fps < math.inf:
        raise MediaError(
            f"the video's frame rate is {fps}, and its time is needed: give the part "
            'meta={"fps": frames a second}.'
        )
    return fps


def pad_frames(frames: np.ndarray, temporal: int) -> np.ndarray:
    """[n, ...] with its last frame repeated until n is a multiple of `temporal`."""
    lack = -len(frames) % temporal
    return np.concatenate([frames, np.repeat(frames[-1:], lack, axis=0)])


def seconds(indices: np.ndarray, fps: float, temporal: int = 2) -> np.ndarray:
    """[t] float64: the middle of each temporal patch in seconds; Qwen3-VL writes it as text.

    Args:
      indices: as `sample` returns them.
    """
    times = pad_frames(indices, temporal).reshape(-1, temporal) / known(fps)
    return (times[:, 0] + times[:, -1]) / 2
