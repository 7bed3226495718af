"""A trainable codec of audio: frames of samples, a small net, a few codes a frame.

A frame of `hop` samples goes through convolutions over its neighbours to one latent, and
residual vector quantization (as in SoundStream, arXiv:2107.03312) makes `codebooks` codes
of it, coarse to fine. All works in the time domain; see `models.codecs.vq` for the parts.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from alanything_jax.models.codecs import vq
from alanything_jax.models.params import ParamSpec


@dataclasses.dataclass(frozen=True)
class AudioVQ:
    """Audio of at most `frames` frames. Codes run frame by frame, coarse to fine.

    All levels share the codes 0 .. size - 1, so whatever whole frames a grammar allows
    can be decoded.

    Attributes:
      rate: samples a second; nothing is resampled. hop: samples of a frame.
      frames: most frames of a block. codebooks: codes of a frame.
      size: number of codes. channels, depth: width and blocks of the nets.
      latent: width D of a row of the tables.
    """

    rate: int = 8000
    hop: int = 400
    frames: int = 48
    codebooks: int = 2
    size: int = 256
    channels: int = 128
    depth: int = 2
    latent: int = 32

    kind: ClassVar = "audio"
    stop: ClassVar = True

    @property
    def frame(self) -> int:
        """Codes of a frame."""
        return self.codebooks

    @property
    def length(self) -> int:
        """Most codes of a block."""
        return self.frames * self.codebooks

    def specs(self) -> dict[str, ParamSpec]:
        """What `params` holds."""
        sizes = (self.channels, self.depth, 1)
        table = (self.codebooks, self.size, self.latent)
        return {
            vq.TABLE: ParamSpec(table, (None,) * 3),
            **vq.net_specs("encoder", self.hop, self.latent, *sizes),
            **vq.net_specs("decoder", self.latent, self.hop, *sizes),
        }

    def fit(self, media: np.ndarray, rate: int | None = None) -> np.ndarray:
        """float32 [samples], as it is.

        Raises:
          ValueError: no samples, another shape or dtype, or another rate, if one is said.
        """
        if media.ndim != 1 or not len(media) or media.dtype != np.float32:
            raise ValueError(
                f"audio {media.dtype} {media.shape}, not float32 [samples]."
            )
        if rate not in (None, self.rate):
            raise ValueError(
                f"audio at {rate} Hz; the codec takes {self.rate} Hz. Resample it first."
            )
        return media

    def crop(self, media: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The most samples the codec takes, from a random place; less as it is."""
        most = self.frames * self.hop
        start = int(rng.integers(max(1, len(media) - most + 1)))
        return media[start : start + most]

    def patches(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples -> float32 [frames, hop], and a mask [frames] of those they fill.

        A last frame that they fill in part ends in silence.

        Raises ValueError: more frames than the codec takes.
        """
        count = -(-len(media) // self.hop)
        if count > self.frames:
            raise ValueError(
                f"{len(media) / self.rate:.2f} s of audio; the codec takes "
                f"{self.frames * self.hop / self.rate:.2f} s."
            )
        padded = np.zeros(self.frames * self.hop, np.float32)
        padded[: len(media)] = media
        return padded.reshape(self.frames, self.hop), np.arange(self.frames) < count

    def assembled(self, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The whole frames of the mask: float32 [samples] in -1..1."""
        return np.clip(np.asarray(patches)[mask], -1.0, 1.0).reshape(-1)

    def latents(
        self, params: vq.Params, patches: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """[B, n, hop] -> [B, n, D]."""
        return vq.net(params, "encoder", patches, mask)

    def restored(
        self, params: vq.Params, latents: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """[B, n, D] -> [B, n, hop]."""
        return vq.net(params, "decoder", latents, mask)

    def encode(
        self, params: vq.Params, media: np.ndarray, rate: int | None = None
    ) -> np.ndarray:
        """float32 [samples] -> codes [n * codebooks] of n whole frames.

        Raises ValueError: as `fit` and `patches` do; missing arrays.
        """
        patches, mask = self.patches(self.fit(media, rate))
        return vq.encoded(self, params, patches, mask)[mask].reshape(-1)

    def decode(self, params: vq.Params, codes: np.ndarray) -> np.ndarray:
        """Codes [n * codebooks] -> float32 [n * hop].

        Raises ValueError: no whole frames, or too many; a code out of range.
        """
        codes = np.asarray(codes)
        count, rest = divmod(codes.size, self.codebooks)
        if codes.ndim != 1 or rest or not 0 < count <= self.frames:
            raise ValueError(
                f"{codes.shape} codes are not 1 to {self.frames} whole frames of "
                f"{self.codebooks}."
            )
        padded = np.zeros((self.frames, self.codebooks), np.int32)
        padded[:count] = codes.reshape(count, self.codebooks)
        mask = np.arange(self.frames) < count
        return self.assembled(vq.decoded(self, params, padded, mask), mask)
