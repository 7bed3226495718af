"""Media to what an encoder is fed (`schema.Medium`), equal to Hugging Face's processors.

A family's settings come from its configs; a medium, from settings and an array:

    settings = settings_from_hf(preprocessor_config, hf_model_config)   # {"image": ...}
    given = medium(settings[part.kind], *media.load(part))

The arrays, each [p, ...] with one entry a patch or a frame of sound, are the contract
between this folder and the encoders ("outputs" is beside them, not among them):

| settings     | families           | name       | shape  | meaning                           |
|--------------|--------------------|------------|--------|-----------------------------------|
| all          |                    | patches    | [p, d] | float32; d below                  |
|              |                    | segment    | [p]    | int32: equal numbers see each     |
|              |                    |            |        | other, from 1; 0 = padding        |
| SquareVision | LLaVA-1.5, Gemma3, | position   | [p]    | int32: entry of the encoder's     |
|              | Janus              |            |        | table of positions                |
| GridVision   | Qwen2-VL, 2.5-VL,  | position   | [p, 2] | int32: row, column, for the       |
|              | 3-VL, Omni         |            |        | encoder's 2-D rotary positions    |
|              | 2.5-VL, Omni       | window     | [p]    | int32: like segment, in layers    |
|              |                    |            |        | with windows; unique over frames  |
|              | 3-VL               | pos_index  | [p, 4] | int32, float32: entries of the    |
|              |                    | pos_weight | [p, 4] | table of positions, their weights |
| MelAudio     | Omni               | position   | [p]    | int32: mel frame in its chunk     |

SquareVision: d = (channel, row, column) of a patch, as a convolution's weight [D, 3, n, n]
flattens. One segment. CLIP's entry 0 is the class token's place: zeros, position 0; its
outputs are 1 to 576. Gemma3's encoder gives one output for 16 patches (4 x 4, averaged),
so the patches of a block follow each other and `position` tells the true place.
GridVision: d = (channel, frame, row, column). The 2 x 2 patches of one output follow each
other; a segment is a temporal patch (2 frames). `grid` is (t, h, w) of each output in
merged patches; t counts temporal patches, or where the family's language model tells time
(2.5-VL, Omni) time in its unit. Qwen3-VL gives each temporal patch a span of text of its
own, where its t starts at 0.
MelAudio: d = mel bins. Qwen2-Audio: always 3000 frames, segment 1 on sound; one output
for 4 frames. Omni: segment = chunk of 200 frames, p a multiple of 200, one output for 4.
Who packs several media into a row adds to their segments and windows, to keep them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data.media import MediaLimits
from alanything_jax.data.preprocess import audio, grid, square
from alanything_jax.data.preprocess.audio import MelAudio, mediums_of_mel
from alanything_jax.data.preprocess.grid import GridVision, mediums_of_grid
from alanything_jax.data.preprocess.settings import settings_from_hf
from alanything_jax.data.preprocess.square import SquareVision, mediums_of_pixels
from alanything_jax.schema import Medium

__all__ = [
    "GridVision",
    "MelAudio",
    "SquareVision",
    "medium",
    "mediums_of_grid",
    "mediums_of_mel",
    "mediums_of_pixels",
    "settings_from_hf",
]

Settings = SquareVision | GridVision | MelAudio
_MAKE = {
    SquareVision: square.medium,
    GridVision: grid.medium,
    MelAudio: audio.medium,
}


def medium(
    settings: Settings,
    array: np.ndarray,
    meta: Mapping[str, Any],
    limits: MediaLimits = MediaLimits(),
) -> Medium:
    """One medium for an encoder; array and meta as `data.media.load` returns them.

    Raises MediaError: over a limit, empty, not finite, or not of the settings' kind.
    """
    return _MAKE[type(settings)](settings, array, meta, limits)
