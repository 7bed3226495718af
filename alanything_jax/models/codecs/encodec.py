"""EnCodec (arXiv:2210.13438), as facebook/encodec_24khz: mono, causal, residual codes.

Its 48 kHz stereo sibling is not supported: beside codes it keeps a loudness a chunk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from alanything_jax.models.codecs import seanet, vq


@dataclasses.dataclass(frozen=True)
class Encodec:
    """Codes run frame by frame, coarse to fine; all levels share 0 .. size - 1.

    Attributes:
      rate: samples a second; nothing is resampled. size: codes of a codebook.
      codebooks: levels used, 1 .. levels; at 24 kHz each has 0.75 kbit/s.
      levels: codebooks that the arrays hold. max_seconds: of a block.
      The others have the names and meaning that they have in config.json.
    """

    rate: int = 24000
    size: int = 1024
    codebooks: int = 2
    levels: int = 32
    max_seconds: float = 10.0
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    num_lstm_layers: int = 2
    pad_mode: str = "reflect"
    use_conv_shortcut: bool = True

    kind: ClassVar = "audio"
    stop: ClassVar = True

    def __post_init__(self):
        if not 1 <= self.codebooks <= self.levels:
            raise ValueError(f"codebooks={self.codebooks}: give 1 to {self.levels}.")

    @property
    def frame(self) -> int:
        """Codes of a frame."""
        return self.codebooks

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.upsampling_ratios)

    @property
    def length(self) -> int:
        """Most codes of a block."""
        return seanet.limit(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that `params` holds."""
        return {
            vq.TABLE: (self.levels, self.size, self.hidden_size),
            **seanet.shapes(seanet.encoder(self, self.num_lstm_layers)),
            **seanet.shapes(seanet.decoder(self, self.num_lstm_layers)),
        }

    def coded(
        self, params: seanet.Params, samples: jax.Array, count: jax.Array
    ) -> jax.Array:
        """As `seanet.to_codes`, which compiles it."""
        layers = seanet.encoder(self, self.num_lstm_layers)
        latents, _ = seanet.apply(params, layers, samples[:, None], count)
        return vq.quantize(params[vq.TABLE][: self.codebooks], latents)[0].T

    def restored(
        self, params: seanet.Params, codes: jax.Array, count: jax.Array
    ) -> jax.Array:
        """As `seanet.to_audio`, which compiles it."""
        latents = vq.looked_up(params[vq.TABLE][: self.codebooks], codes.T)
        layers = seanet.decoder(self, self.num_lstm_layers)
        return seanet.apply(params, layers, latents, count)[0][:, 0]

    def encode(self, params: seanet.Params, media: np.ndarray) -> np.ndarray:
        """float32 [samples] -> codes [frames * codebooks]; see `seanet.encode`."""
        return seanet.encode(self, params, media)

    def decode(self, params: seanet.Params, codes: np.ndarray) -> np.ndarray:
        """Codes [n * codebooks] -> float32 [n * hop]; see `seanet.decode`."""
        return seanet.decode(self, params, codes)


def from_hf(
    config: Mapping[str, Any], read: seanet.Read
) -> tuple[Encodec, dict[str, np.ndarray]]:
    """The codec at its lowest bandwidth, as transformers has it, and its arrays.

    For another, `dataclasses.replace(codec, codebooks=8)` takes the same arrays.

    Args:
      config: config.json. read: name on disk -> float32 array, weight norm resolved.

    Raises ValueError: an option that is not supported; missing or misshaped tensors.
    """
    needs = {
        "norm_type": "weight_norm",
        "use_causal_conv": True,
        "trim_right_ratio": 1.0,
        "audio_channels": 1,
        "normalize": False,
        "chunk_length_s": None,
    }
    codec = Encodec(**seanet.fields(config, Encodec, needs))
    # Bits a second of one level.
    bits = math.ceil(codec.rate / codec.hop) * math.ceil(math.log2(codec.size))
    bandwidths = config.get("target_bandwidths") or (1.5, 24.0)
    codec = dataclasses.replace(
        codec,
        codebooks=max(1, int(1000 * bandwidths[0] // bits)),
        levels=int(1000 * bandwidths[-1] // bits),
    )
    names = (f"quantizer.layers.{n}.codebook.embed" for n in range(codec.levels))
    params = {
        vq.TABLE: np.stack([read(name) for name in names]),
        **seanet.arrays(seanet.encoder(codec, codec.num_lstm_layers), read),
        **seanet.arrays(seanet.decoder(codec, codec.num_lstm_layers), read),
    }
    return codec, seanet.whole(codec, params)
