"""Sound as Whisper's log-mel frames: Qwen2-Audio (30 s) and Qwen2.5-Omni (chunks)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from alanything_jax.data.media import MediaError, MediaLimits
from alanything_jax.schema import Medium

RATE, WINDOW, HOP = 16000, 400, 160  # Hz; samples
STRIDE = 4  # mel frames of one output: a convolution of stride 2, a pool of 2


@dataclasses.dataclass(frozen=True)
class MelAudio:
    """Both encoders, told apart by `chunk`.

    Attributes:
      bins: mel bins, 128 (Whisper large-v3) or 80.
      max_frames: of 10 ms; longer sound is cut, as transformers does.
      chunk: frames that see each other; None: all, padded to max_frames.
    """

    bins: int = 128
    max_frames: int = 3000
    chunk: int | None = None

    def __post_init__(self):
        if self.chunk is not None and self.chunk % STRIDE:
            raise ValueError(
                f"chunks of {self.chunk} frames; an output is of {STRIDE} frames, so that "
                f"n_window must be even."
            )


def medium(
    settings: MelAudio,
    array: np.ndarray,
    meta: Mapping[str, Any],
    limits: MediaLimits = MediaLimits(),
) -> Medium:
    """Sound, float [n] with `meta["rate"]` in Hz.

    Raises MediaError: empty, too short for one output, over a limit, not finite, no rate.
    """
    rate, (low, high) = meta.get("rate", 0), limits.rates
    if not low <= rate <= high or rate != int(rate):
        raise MediaError(
            f"sound at {rate} Hz; allowed are whole numbers from {low} to {high}: give "
            'the part meta={"rate": Hz}.'
        )
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise MediaError(
            f"the audio is {array.dtype} {list(array.shape)}; float [samples] is taken."
        )
    if not 0 < len(array) <= limits.max_seconds * rate:
        raise MediaError(
            f"{len(array)} samples at {rate} Hz; allowed are 1 sample to "
            f"{limits.max_seconds:.0f} s (max_seconds)."
        )
    if not np.isfinite(array).all():
        raise MediaError("the audio has samples that are not finite (NaN or infinite).")
    samples = resample(array.astype(np.float32), int(rate))
    mel = log_mel(samples, settings.bins, settings.max_frames)
    mask = np.arange(settings.max_frames) < -(-len(samples) // HOP)
    return mediums_of_mel(settings, mel.T[None], mask[None])[0]


def mediums_of_mel(
    settings: MelAudio, features: np.ndarray, mask: np.ndarray
) -> list[Medium]:
    """Of an HF feature extractor's `input_features` [N, bins, frames] and its
    `feature_attention_mask` [N, frames].

    Raises:
      ValueError: a shape that is not these settings'.
      MediaError: too short for one output.
    """
    features, mask = np.asarray(features, np.float32), np.asarray(mask).astype(bool)
    frames = settings.max_frames if settings.chunk is None else features.shape[-1]
    if features.shape != (len(mask), settings.bins, frames) or mask.shape[1:] != (
        frames,
    ):
        raise ValueError(
            f"input_features {features.shape} and feature_attention_mask {mask.shape}; "
            f"this model takes [N, {settings.bins}, {frames}] and [N, {frames}]."
        )
    return [_medium(settings, mel.T, real) for mel, real in zip(features, mask)]


def _medium(settings, mel, real):
    """One medium of frames [t, bins], of which `real` [t] are sound."""
    count = int(real.sum())
    outputs = np.arange(((count - 1) // 2 + 1) // 2, dtype=np.int32)
    if not len(outputs):
        raise MediaError(
            f"{count} frames of 10 ms are too short for one output; 3 are needed."
        )
    if settings.chunk is None:
        arrays = {"patches": mel, "segment": real.astype(np.int32)}
        return Medium("audio", "audio", arrays, outputs)
    place = np.arange(-(-count // settings.chunk) * settings.chunk, dtype=np.int32)
    arrays = {
        "patches": np.pad(mel[real], ((0, len(place) - count), (0, 0))),
        "segment": np.where(place < count, place // settings.chunk + 1, 0),
        "position": place % settings.chunk,
    }
    return Medium("audio", "audio", arrays, outputs)


def resample(samples: np.ndarray, rate: int, to: int = RATE) -> np.ndarray:
    """float32 [n] at `rate` Hz -> [ceil(n * to / rate)] at `to` Hz, by windowed sincs.

    Kept are frequencies up to some 91% of the lower rate's half; what would fold is 80 dB
    down. (The kept libraries have no resampler: soundfile reads, PyAV is an extra.)
    """
    if rate == to:
        return samples
    up, down = to // math.gcd(rate, to), rate // math.gcd(rate, to)
    cutoff, zeros = 0.955 * min(1, up / down), 64
    half = math.ceil(zeros / cutoff)
    kaiser = np.kaiser(8193, 8.5)[4096:]  # its right half, from 0 to half + 1
    windows = sliding_window_view(np.pad(samples, half), 2 * half + 1)  # [n, taps]
    out = np.empty(-(-len(samples) * up // down), np.float32)
    for phase in range(min(up, len(out))):  # outputs at the same place between samples
        first, rest = divmod(phase * down, up)
        at = np.arange(-half, half + 1) - rest / up
        shape = np.interp(np.abs(at) * (4096 / (half + 1)), np.arange(4097), kaiser)
        taps = cutoff * np.sinc(cutoff * at) * shape
        out[phase::up] = windows[first::down] @ taps.astype(np.float32)
    return out


def log_mel(samples: np.ndarray, bins: int, frames: int) -> np.ndarray:
    """float32 [frames, bins] of samples [n] at 16 kHz, cut or filled up with silence: log10
    of the power in each mel band, down to 8 below the loudest, scaled as Whisper's."""
    samples = samples[: frames * HOP].astype(np.float64)
    silence = min(frames * HOP - len(samples), WINDOW)
    # Frames after these hold silence only.
    heard = min(frames, -(-(len(samples) + WINDOW // 2) // HOP))
    padded = np.pad(np.pad(samples, (0, silence)), WINDOW // 2, mode="reflect")
    windows = sliding_window_view(padded, WINDOW)[::HOP][:heard]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(windows * hann)) ** 2
    mel = np.full((frames, bins), -10.0)
    mel[:heard] = np.log10(np.maximum(power @ mel_filters(bins), 1e-10))
    return ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)


@functools.cache
def mel_filters(bins: int) -> np.ndarray:
    """[201, bins]: triangles of equal area, evenly spaced on Slaney's mel scale (linear
    below 1 kHz, logarithmic above) from 0 to 8 kHz."""
    top = 15 + 27 * math.log(8) / math.log(6.4)
    mels = np.linspace(0, top, bins + 2)
    high = 1000 * np.exp(math.log(6.4) / 27 * (mels - 15))
    hertz = np.where(mels < 15, mels * 200 / 3, high)
    at = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rise = (at - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    fall = (hertz[2:] - at) / (hertz[2:] - hertz[1:-1])
    return np.maximum(np.minimum(rise, fall), 0) * 2 / (hertz[2:] - hertz[:-2])
