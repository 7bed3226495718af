"""Examples on disk: a TFDS data set in ArrayRecord, written and read without TensorFlow.

Each record is one Example, its media bytes inside. `tfds.builder_from_directory(dir)
.as_data_source("train")` reads it too.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax import schema

NAME, VERSION = "alanything", "1.0.0"


def to_json(value: Any) -> Any:
    """Any schema record as JSON; bytes and arrays become tagged base64."""
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__": raw, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"__type__": type(value).__name__} | {
            k: to_json(v) for k, v in fields.items()
        }
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)  # Dates and decimals of a table's further columns.


_TYPES = {
    kind.__name__: kind
    for kind in (
        schema.Example,
        schema.Message,
        schema.Part,
        schema.Response,
        schema.Feedback,
        schema.Rating,
        schema.Critique,
    )
}


def from_json(value: Any, types: Mapping[str, type] = _TYPES) -> Any:
    """The inverse of `to_json`; lists come back as lists inside `extra`, else tuples.

    `types`: the records that may come, by name; the schema's.
    """
    if isinstance(value, list):
        return [from_json(v, types) for v in value]
    if not isinstance(value, dict):
        return value
    if "__bytes__" in value:
        return base64.b64decode(value["__bytes__"])
    if "__array__" in value:
        raw = base64.b64decode(value["__array__"])
        return np.frombuffer(raw, value["dtype"]).reshape(value["shape"]).copy()
    if "__type__" in value:
        kind = types[value["__type__"]]
        fields = {k: from_json(v, types) for k, v in value.items() if k != "__type__"}
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return kind(**tuples)
    return {k: from_json(v, types) for k, v in value.items()}


def to_text(example: schema.Example) -> str:
    """An Example as the JSON text of the feature `example`."""
    return json.dumps(to_json(example), sort_keys=True, ensure_ascii=False)


def encode_record(example: schema.Example) -> bytes:
    """One record: a `tf.train.Example` with the features `id` and `example`.

    The three protobuf messages needed are written by hand (field 1, length-delimited,
    all the way down), so that no TensorFlow is imported and TFDS can read it.
    """
    features = {"example": to_text(example).encode(), "id": example.id.encode()}
    entries = b"".join(
        _field(1, _field(1, key.encode()) + _field(2, _field(1, _field(1, value))))
        for key, value in features.items()
    )
    return _field(1, entries)


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _parse(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, payload) of the length-delimited fields of a message."""
    at = 0
    while at < len(data):
        number, at = data[at] >> 3, at + 1
        size = shift = 0
        while True:
            byte, at = data[at], at + 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        yield number, data[at : at + size]
        at += size


def decode_record(record: bytes) -> schema.Example:
    """The inverse of `encode_record`."""
    ((_, entries),) = _parse(record)
    for _, entry in _parse(entries):
        pair = dict(_parse(entry))
        if pair[1] == b"example":
            ((_, holder),) = _parse(pair[2])
            ((_, body),) = _parse(holder)
            return from_json(json.loads(body))
    raise ValueError("the record has no `example` feature: written by another program?")


def write(
    examples: Iterable[schema.Example], directory: Path, records_per_shard: int = 10_000
) -> int:
    """Write a data set; returns the number of records. Equal input gives equal bytes.

    Raises ValueError: the directory exists and is not empty.
    """
    aside = place(directory)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        rest, sizes = iter(examples), []
        for first in rest:
            some = itertools.islice(rest, records_per_shard - 1)
            path = shard_path(aside, len(sizes))
            sizes.append(write_shard(itertools.chain([first], some), path))
        if not sizes:
            raise ValueError("no record to write: every row was set aside.")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    publish(sizes, directory)
    return sum(count for count, _ in sizes)


def place(directory: Path) -> Path:
    """The folder where shards are collected until all are there.

    Raises ValueError: the directory exists and is not empty.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"{directory} is not empty. Give a new directory, or remove it."
        )
    return directory.with_name(directory.name + ".incomplete")


def shard_path(folder: Path, number: int) -> Path:
    """A shard's name until `publish`."""
    return Path(folder) / f"shard-{number:05d}"


def write_shard(examples: Iterable[schema.Example], path: Path) -> tuple[int, int]:
    """Write one shard; returns its records and their bytes."""
    from array_record.python import array_record_module

    count = size = 0
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        record = encode_record(example)
        writer.write(record)
        count, size = count + 1, size + len(record)
    writer.close()
    return count, size


def publish(sizes: Sequence[tuple[int, int]], directory: Path) -> None:
    """Name the shards in `place(directory)` as TFDS does, describe them, move them in.

    Args:
      sizes: what `write_shard` returned for each shard.
    """
    directory, aside = Path(directory), place(directory)
    for n in range(len(sizes)):
        name = f"{NAME}-train.array_record-{n:05d}-of-{len(sizes):05d}"
        os.replace(shard_path(aside, n), aside / name)
    _describe(aside, sizes)
    if directory.exists():
        directory.rmdir()
    os.replace(aside, directory)


def _describe(directory, sizes):
    """TFDS's dataset_info.json and features.json."""
    text = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}
    text |= {"text": {}}
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"example": text, "id": text}},
    }
    info = {
        "name": NAME,
        "version": VERSION,
        "description": "Groups of a prompt and responses with feedback, as JSON.",
        "fileFormat": "array_record",
        "moduleName": "alanything_jax.data.store",
        "splits": [
            {
                "name": "train",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(count) for count, _ in sizes],
                "numBytes": str(sum(size for _, size in sizes)),
            }
        ],
    }
    for name, value in (("dataset_info", info), ("features", features)):
        (directory / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def shards(directory: Path, split: str = "train") -> list[Path]:
    """The files of a data set's split, in order."""
    return sorted(Path(directory).glob(f"*-{split}.array_record-*"))


def read(directory: Path, split: str = "train") -> Stored:
    """Random access to a data set's Examples.

    Raises ValueError: no data set of this layout is there.
    """
    from array_record.python import array_record_data_source

    found = [str(path) for path in shards(directory, split)]
    if not found:
        raise ValueError(
            f"{directory} holds no .array_record shards of the split {split!r}. Make a "
            "data set with `alanything data convert`."
        )
    return Stored(array_record_data_source.ArrayRecordDataSource(found))


@dataclasses.dataclass(frozen=True)
class Stored:
    """A sequence of Examples, decoded when asked for."""

    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> schema.Example:
        if not 0 <= number < len(self.records):
            raise IndexError(number)
        return decode_record(self.records[number])
