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

from alanything_jax.models.codecs import (
    audio_vq,
    emu3_vq,
    encodec,
    mimi,
    notes,
    palette,
    vq,
    vqgan,
)

CODECS = {
    "palette": palette.Palette,
    "notes": notes.Notes,
    "vq": vq.VQ,
    "audio_vq": audio_vq.AudioVQ,
    "encodec": encodec.Encodec,
    "mimi": mimi.Mimi,
    "vqgan": vqgan.VQGAN,
    "emu3_vq": emu3_vq.Emu3VQ,
}
# model_type of a Hugging Face config.json -> what reads its directory.
HF = {
    "encodec": encodec,
    "mimi": mimi,
    "chameleon": vqgan,
    "chameleon_vqgan": vqgan,
    "janus": vqgan,
    "janus_vqgan": vqgan,
    "emu3": emu3_vq,
    "emu3_vqgan": emu3_vq,
}
# Nets that follow from the names on disk, which `from_hf` takes, too.
NAMED = (vqgan, emu3_vq)
# Spellings of weight norm on disk: the length of a kernel, and its direction.
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
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
    """Codec and params that `save` wrote, or of a Hugging Face directory.

    That is of a codec, or of a model with one (chameleon, janus, emu3).

    Raises:
      FileNotFoundError: no codec in that directory.
      ValueError: one that we do not have, or with options that we do not have.
    """
    from safetensors.numpy import load_file

    stated, arrays = Path(directory) / STATED, Path(directory) / ARRAYS
    described = Path(directory) / "config.json"
    config = json.loads(described.read_text()) if described.is_file() else {}
    # A run's own config.json has none.
    family = config.get("model_type")
    if family and not stated.is_file():
        if family not in HF:
            raise ValueError(
                f"{directory} holds a {family!r}; codecs of Hugging Face that are read: "
                f"{sorted(HF)}."
            )
        kind, (read, names) = HF[family], _reader(Path(directory))
        config["image_processor"] = _image_processor(Path(directory))
        return kind.from_hf(config, read, *([names] if kind in NAMED else []))
    if not (stated.is_file() and arrays.is_file()):
        raise FileNotFoundError(
            f"{directory} holds no trained codec ({STATED}, {ARRAYS}). Give the run "
            "directory of one, after its last step."
        )
    return from_json(json.loads(stated.read_text())), load_file(arrays)


def _image_processor(directory):
    """What transformers wrote of one, by itself or within a processor's file."""
    found = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (directory / name).is_file():
            stated = json.loads((directory / name).read_text())
            found |= stated.get("image_processor", stated)
    return found


def _reader(directory):
    """name -> float32 array of a directory's safetensors, weight norm resolved; names."""
    from safetensors import safe_open

    places = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            places |= dict.fromkeys(file.keys(), path)

    def stored(name):
        with safe_open(places[name], "np") as file:
            return file.get_tensor(name).astype(np.float32)

    def read(name):
        if name in places:
            return stored(name)
        for length, direction in WEIGHT_NORM:
            pair = [name.removesuffix("weight") + part for part in (length, direction)]
            if name.endswith(".weight") and set(pair) <= set(places):
                g, v = map(stored, pair)
                axes = tuple(range(1, v.ndim))
                return g * v / np.sqrt(np.square(v).sum(axes, keepdims=True))
        raise ValueError(
            f"{directory} has no tensor {name!r}; *.safetensors there hold "
            f"{len(places)} others. Give a whole checkpoint."
        )

    return read, list(places)
