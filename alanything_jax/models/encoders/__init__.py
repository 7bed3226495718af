"""Encoders: media to soft tokens, as pure functions. One file each.

An encoder's config is a frozen dataclass with `name` (its key in `Batch.media`), `merge`
(patches that make one output), `align` (its patch budget is a multiple of this) and
`arrays` (name -> trailing shape and dtype of what a row holds of each patch, beside
"segment"). Its module has two functions:

    specs(cfg) -> Tree                                  its parameters
    encode(params, cfg, media, attend) -> [B, P / merge, D], deep

`media` is one entry of `Batch.media`, arrays [B, P, ...]; `attend(q, k, v, segment)` is
attention both ways within segments (0 = padding); `deep` [n, B, P / merge, D] are outputs
of n depths for the decoder's first layers, or None.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from alanything_jax.models.encoders import audio, qwen_vit, vit

# Config class -> its module.
ENCODERS: Mapping[type, types.ModuleType] = {
    audio.AudioEncoder: audio,
    qwen_vit.QwenVit: qwen_vit,
    vit.ViT: vit,
}


def of(cfg: Any) -> types.ModuleType:
    """The module of an encoder's config."""
    return ENCODERS[type(cfg)]
