"""Rows asked once: each finished row is a line on disk, and a restart skips it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from alanything_jax.schema import Part


class HasId(Protocol):
    """A row: anything with an id that no other row of its file has."""

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=HasId)
Ask = Callable[[Sequence[Row]], Mapping[str, Mapping[str, Any]]]


def evaluate_rows(
    rows: Iterable[Row],
    ask: Ask,
    path: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    stamp: Callable[[Row], str] | None = None,
    batch_size: int = 64,
) -> dict[str, dict[str, Any]]:
    """Ask for every row that `path` does not yet hold; the results of all, in row order.

    A result with an "error" is returned but not written: a restart asks it again. The
    file's first line holds the settings, then comes one line a row, on disk (fsync)
    before the next is written. A half-written last line is cut off.

    Args:
      rows: with unique ids.
      ask: some rows -> {row id: result}, results as JSON has them.
      path: the `.jsonl` file.
      settings: what the results depend on (model, judge, templates): a file made under
        other settings is refused.
      stamp: a fingerprint of what is judged in a row, kept with its result: a row whose
        fingerprint has changed is asked again.
      batch_size: rows a call of `ask`; at most so many are asked again after a kill.

    Raises:
      ValueError: ids that repeat, results for other rows than were asked, a file made
        under other settings or damaged before its last line.
    """
    rows, path = list(rows), Path(path)
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"row ids repeat: {twice[:5]}; give every row its own.")
    header = json.loads(json.dumps({"settings": dict(settings or {})}, sort_keys=True))
    stamps = {row.id: stamp(row) if stamp else "" for row in rows}
    kept = _finished(path, header)
    done = {
        i: kept[i]["result"] for i in ids if kept.get(i, {}).get("stamp") == stamps[i]
    }
    failed = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [row for row in rows if row.id not in done]
    with path.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            _append(file, header)
        for start in range(0, len(todo), batch_size):
            some = todo[start : start + batch_size]
            answers = ask(some)
            if strange := set(answers) - {row.id for row in some}:
                raise ValueError(f"results for rows not asked: {sorted(strange)[:5]}.")
            for row in some:
                result = dict(answers.get(row.id, {"error": "no result came back"}))
                if result.get("error"):
                    failed[row.id] = result
                else:
                    line = {"id": row.id, "stamp": stamps[row.id], "result": result}
                    _append(file, line)
                    done[row.id] = result
    return {i: failed[i] if i in failed else done[i] for i in ids}


def fingerprint(*parts: Part | str | None) -> str:
    """16 hex digits of what is in some parts; a file that is only named, by its name."""
    digest = hashlib.sha256()
    for part in parts:
        part = Part("text", text=part) if isinstance(part, str) else part
        if part is None:
            digest.update(b"none;")
            continue
        data = part.data
        if isinstance(data, np.ndarray):
            digest.update(f"{data.dtype}{data.shape}".encode())
            data = np.ascontiguousarray(data).tobytes()
        digest.update(json.dumps([part.kind, part.text, part.uri]).encode())
        digest.update(hashlib.sha256(data or b"").digest())
    return digest.hexdigest()[:16]


def _append(file, value):
    file.write(json.dumps(value, allow_nan=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _finished(path, header):
    """Lines on disk by row id, the last of each; cuts a half-written one off."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        os.truncate(path, len(whole))
    lines = whole.decode("utf-8").splitlines()
    try:
        records = [json.loads(line) for line in lines]
        if records and records[0] != header:
            raise ValueError(
                f"its settings are {records[0].get('settings')!r}, now "
                f"{header['settings']!r}"
            )
        return {
            r["id"]: {"stamp": r["stamp"], "result": r["result"]} for r in records[1:]
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be continued: {error}. Move it away, or give another path."
        ) from error
