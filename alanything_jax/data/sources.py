"""Rows of a file, one dict at a time, with the place each came from.

A file is a local path, or an address that fsspec opens: `hf://datasets/OWNER/NAME/FILE`
(by huggingface_hub), `gs://`, `s3://` (with gcsfs, s3fs installed). It is read as it comes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".parquet")


def rows(
    path: str | Path, first: int = 0, stop: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """(row number, row) of a .json list, .jsonl lines or .parquet table.

    Those from `first` on, `stop` excluded; of a table, only their row groups are read.

    A line that cannot be parsed comes as the exception instead of a row, so that the
    caller can set it aside.

    Raises:
      FileNotFoundError, ValueError: no such file, or of another kind.
    """
    read, path = _reader(path)
    for number, row in read(path, first):
        if stop is not None and number >= stop:
            return
        if number >= first:
            yield number, row


def spans(path: str | Path, size: int) -> list[tuple[int, int]]:
    """Cuts a file into (first, stop) of `size` rows or somewhat more, for parallel work."""
    read, path = _reader(path)
    if read is _parquet:
        ends = list(itertools.accumulate(_row_groups(path)))
    else:
        ends = [number + 1 for number, _ in read(path, 0)]
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= size or end == ends[-1]:
            cuts.append(end)
    return list(itertools.pairwise(cuts))


def _reader(path):
    path = path if "://" in str(path) else Path(path)
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(
            f"no data at {path}: give a file ({', '.join(SUFFIXES)}) or a converted data set."
        )
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: give one of {SUFFIXES}, or a converted data set.")
    return {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}[suffix], path


def _opened(path, mode="r"):
    """A local file, or one elsewhere."""
    text = {} if "b" in mode else {"encoding": "utf-8"}
    if isinstance(path, Path):
        return path.open(mode, **text)
    import fsspec

    return fsspec.open(path, mode, **text).open()


def _json(path, first):
    with _opened(path) as file:
        # A list may be one line of all there is: read no more of it than this.
        start = file.read(1)
        line = file.readline() if start == "{" else ""
    if line.rstrip().endswith("}"):
        # What `datasets` writes under this name: an object a line.
        yield from _jsonl(path, first)
        return
    try:
        with _opened(path) as file:
            value = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}.") from error
    if not isinstance(value, list):
        raise ValueError(
            f"{path} holds one {type(value).__name__}; give a list of rows."
        )
    yield from enumerate(value)


def _jsonl(path, first):
    del first
    with _opened(path) as file:
        for number, line in enumerate(file):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    row = ValueError(f"line {number + 1} is no valid JSON: {error}")
                yield number, row


def _parquet(path, first):
    with _opened(path, "rb") as opened:
        file, number, groups = _table(opened, path), 0, []
        for group, size in enumerate(_sizes(file)):
            if groups or number + size > first:
                groups.append(group)
            else:
                number += size
        # Few at a time: rows may hold media.
        for batch in file.iter_batches(64, row_groups=groups):
            for row in batch.to_pylist():
                yield number, row
                number += 1


def _table(opened, path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(opened)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable parquet file: {error}.") from error


def _sizes(file):
    return [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]


def _row_groups(path):
    with _opened(path, "rb") as opened:
        return _sizes(_table(opened, path))
