"""Codecs: media to codes and back, as pure functions. One file each.

A codec is a frozen dataclass with `kind`, `size` (number of codes), `length` (codes of
a block), `stop` and `frame` as in `models.grammar.Block`, and two functions:

    encode(params, media) -> codes [n] int32      decode(params, codes) -> media

`params` is a flat dict of arrays, empty for exact codecs. Media are arrays: an image
uint8 [height, width, 3], audio float32 [samples] in -1..1, video uint8 [frames, height,
width, 3]. `encode` raises ValueError for media it cannot represent. What a trained codec
has beside, its training reads: see `vq`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.models.codecs import audio_vq, notes, palette, vq

CODECS = {
    "palette": palette.Palette,
    "notes": notes.Notes,
    "vq": vq.VQ,
    "audio_vq": audio_vq.AudioVQ,
}
# What a directory of a trained codec holds.
STATED, ARRAYS = "codec.json", "codec.safetensors"


def to_json(codec: Any) -> dict[str, Any]:
    """`{"name": ..., its fields}`."""
    (name,) = (n for n, kind in CODECS.items() if isinstance(codec, kind))
    return {"name": name} | dict(vars(codec))


def from_json(value: dict[str, Any]) -> Any:
    """The inverse of `to_json`. Raises ValueError for a name we do not have."""
    fields = {
        key: tuple(item) if isinstance(item, list) else item
        for key, item in value.items()
        if key != "name"
    }
    if value.get("name") not in CODECS:
        raise ValueError(
            f"codec {value.get('name')!r}: this version has {sorted(CODECS)}."
        )
    return CODECS[value["name"]](**fields)


def save(directory: str | Path, codec: Any, params: dict[str, Any]) -> None:
    """Write `codec.json` and `codec.safetensors` into an existing directory."""
    from safetensors.numpy import save_file

    arrays = {path: np.ascontiguousarray(value) for path, value in params.items()}
    save_file(arrays, Path(directory) / ARRAYS)
    text = json.dumps(to_json(codec), indent=2)
    (Path(directory) / STATED).write_text(text + "\n")


def load(directory: str | Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Codec and params that `save` wrote, such as `alanything train` of a codec does.

    Raises FileNotFoundError: no codec in that directory.
    """
    from safetensors.numpy import load_file

    stated, arrays = Path(directory) / STATED, Path(directory) / ARRAYS
    if not (stated.is_file() and arrays.is_file()):
        raise FileNotFoundError(
            f"{directory} holds no trained codec ({STATED}, {ARRAYS}). Give the run "
            "directory of one, after its last step."
        )
    return from_json(json.loads(stated.read_text())), load_file(arrays)
