"""An exact codec of tunes: one code a note, which has a pitch and a duration.

Code = 2 * pitch + (1 if long). A note sounds one beat, or two if long; its onset is a
short silence, so that repeated notes stay apart. Encoding looks at each beat: is there an
onset, and which pitch correlates most.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

NUM_PITCHES = 14
# Steps of a major scale in semitones; pitch 0 is the G below middle C.
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_LOWEST_HZ = 196.0


def frequency(pitch: int) -> float:
    """Hertz of a pitch, 0 .. NUM_PITCHES - 1, on a major scale."""
    octave, step = divmod(pitch, len(_SCALE))
    return _LOWEST_HZ * 2 ** (octave + _SCALE[step] / 12)


@dataclasses.dataclass(frozen=True)
class Notes:
    """Tunes of at most `length` notes.

    Attributes:
      length: most notes. rate: samples a second. beat: samples of a short note.
    """

    length: int = 8
    rate: int = 8000
    beat: int = 1200

    kind: ClassVar = "audio"
    stop: ClassVar = True
    frame: ClassVar = 1

    @property
    def size(self) -> int:
        """Number of codes."""
        return 2 * NUM_PITCHES

    @property
    def gap(self) -> int:
        """Samples of silence at a note's onset."""
        return self.beat // 8

    def encode(self, params: dict[str, Any], media: np.ndarray) -> np.ndarray:
        """float32 [samples] -> codes [n], 1 <= n <= length.

        Raises ValueError: no whole beats, no onset, a note of three beats, no clear
        pitch, or too many notes.
        """
        del params
        if media.ndim != 1 or not len(media) or len(media) % self.beat:
            raise ValueError(
                f"audio {media.shape} is no whole number of beats of {self.beat} samples."
            )
        beats = media.reshape(-1, self.beat).astype(np.float32)
        onset = np.abs(beats[:, : self.gap]).max(axis=1) < 0.01
        waves = _waves(self.rate, self.beat)
        power = np.square(beats @ waves).reshape(-1, 2, NUM_PITCHES).sum(axis=1)
        energy = np.square(beats).sum(axis=1) * self.beat
        pitch = power.argmax(axis=1)
        if (
            not onset[0]
            or np.any(power.max(axis=1) < 0.2 * energy)
            or energy.min() <= 0
        ):
            raise ValueError(
                "the audio is no tune: a beat has no clear pitch or onset."
            )
        codes: list[int] = []
        for start, p in zip(onset, pitch, strict=True):
            if start:
                codes.append(2 * int(p))
            elif codes[-1] != 2 * int(p):
                raise ValueError("a note lasts three beats or changes its pitch.")
            else:
                codes[-1] += 1
        if len(codes) > self.length:
            raise ValueError(f"{len(codes)} notes, the codec takes {self.length}.")
        return np.array(codes, np.int32)

    def decode(self, params: dict[str, Any], codes: np.ndarray) -> np.ndarray:
        """Codes [n] -> float32 [samples]."""
        del params
        notes = []
        for code in np.asarray(codes):
            pitch, long = divmod(int(code), 2)
            size = self.beat * (1 + long)
            time = np.arange(size) / self.rate
            tone = np.sin(2 * np.pi * frequency(pitch) * time)
            tone += 0.3 * np.sin(4 * np.pi * frequency(pitch) * time)
            fade = np.minimum(1.0, np.arange(size)[::-1] / (self.beat / 4))
            tone[: self.gap] = 0
            notes.append(0.5 * tone * fade)
        return np.concatenate(notes).astype(np.float32)


@functools.cache
def _waves(rate, beat):
    """float32 [beat, 2 * NUM_PITCHES]: a cosine and a sine of each pitch."""
    time = np.arange(beat)[:, None] / rate
    turns = 2 * np.pi * time * [frequency(p) for p in range(NUM_PITCHES)]
    return np.concatenate([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
