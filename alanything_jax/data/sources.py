"""Rows of a file, one dict at a time, with the place each came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".parquet")


def rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """(row number, row) of a .json list, .jsonl lines or .parquet table.

    A line that cannot be parsed comes as the exception instead of a row, so that the
    caller can set it aside.

    Raises:
      FileNotFoundError, ValueError: no such file, or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: give one of {SUFFIXES}, or a converted data set.")
    return {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix](path)


def _json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}.") from error
    if not isinstance(value, list):
        raise ValueError(
            f"{path} holds one {type(value).__name__}; give a list of rows."
        )
    yield from enumerate(value)


def _jsonl(path):
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    row = ValueError(f"line {number + 1} is no valid JSON: {error}")
                yield number, row


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable parquet file: {error}.") from error
    number = 0
    for batch in file.iter_batches(1024):
        for row in batch.to_pylist():
            yield number, row
            number += 1
