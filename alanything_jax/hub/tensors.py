"""Safetensors files: headers, lazily read tensors, staged writing."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 and float8 by this import)
import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The scalar head of a reward model whose family has no class for one in transformers.
SCORE = "score.safetensors"
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of a file, `begin` added; no data is read.

    Raises ValueError: the file is truncated or no safetensors file; says which and how.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size + 1
        if 8 + length > size:
            raise ValueError(
                f"{path} is truncated: its header needs {8 + length} bytes, the file "
                f"has {size}. Download it again."
            )
        try:
            entries = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors file: {error}.") from error
    entries.pop("__metadata__", None)
    end = max((e["data_offsets"][1] for e in entries.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(
            f"{path} is truncated: its tensors end at byte {8 + length + end}, the file "
            f"has {size}. Download it again."
        )
    return {name: e | {"begin": 8 + length} for name, e in entries.items()}


def read(path: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor, memory-mapped: pages are read when they are used."""
    start, stop = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    raw = (
        np.memmap(path, np.uint8, "r", entry["begin"] + start, (stop - start,))
        if (stop > start)
        else np.zeros(0, np.uint8)
    )
    return np.asarray(raw).view(dtype).reshape(entry["shape"])


def locate(directory: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every tensor of a directory: name -> (file, header entry).

    Raises ValueError: no weights, or a shard that the index names is missing.
    """
    index = directory / INDEX
    if index.exists():
        named = json.loads(index.read_text())["weight_map"]
        files = sorted(set(named.values()))
        missing = [name for name in files if not (directory / name).exists()]
        if missing:
            raise ValueError(
                f"{directory} lacks the shards {missing} that {INDEX} names."
            )
    elif (directory / SINGLE).exists():
        files = [SINGLE]
    else:
        raise ValueError(
            f"{directory} has neither {SINGLE} nor {INDEX}. Only safetensors weights are "
            "read (never pickles): convert the checkpoint, or give another directory."
        )
    return {
        name: place
        for file in files
        for name, place in located(directory / file).items()
    }


def located(path: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every tensor of one file: name -> (file, header entry)."""
    return {name: (path, entry) for name, entry in header(path).items()}


def write_one(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A single safetensors file."""
    from safetensors.numpy import save_file

    # `ascontiguousarray` gives a scalar a dim.
    arrays = {n: np.asarray(value, order="C") for n, value in tensors.items()}
    save_file(arrays, path, metadata={"format": "pt"})


def write(
    directory: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int = 5 * 10**9
) -> dict[str, Any]:
    """Shards (and their index, if several) into an existing directory.

    Returns the index: `{"metadata": {...}, "weight_map": {...}}`.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, value in tensors.items():
        if shards[-1] and used + value.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += value.nbytes
    names = [SINGLE]
    if len(shards) > 1:
        names = [
            f"model-{n:05d}-of-{len(shards):05d}.safetensors"
            for n in range(1, len(shards) + 1)
        ]
    for name, shard in zip(names, shards, strict=True):
        write_one(directory / name, shard)
    index = {
        "metadata": {
            "total_size": sum(v.nbytes for v in tensors.values()),
            "total_parameters": sum(v.size for v in tensors.values()),
        },
        "weight_map": {
            key: name
            for name, shard in zip(names, shards, strict=True)
            for key in shard
        },
    }
    if len(shards) > 1:
        (directory / INDEX).write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n"
        )
    return index
