"""Rows in fixed shards on disk: each written aside and renamed, so done or not there.

A line of `STAGE/shard-00000.jsonl` is `{"row": n, "example": ...}`, the Example as
`store.to_json` gives it, or `{"dropped": {...}}`, a record that ended here and why.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from alanything_jax.data import store
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A record that goes no further.

    Attributes:
      row: its number in the source.
      cause: one word for the table: unreadable, attribute, empty, garbled, echo,
        error, missing, duplicate.
      reason: a sentence for the person who can mend it.
      question: which question it was, if one.
    """

    id: str
    row: int
    cause: str
    reason: str
    question: str | None = None


Row = tuple[int, Example]


def path(stage_dir: Path, number: int) -> Path:
    """Where a shard lies."""
    return Path(stage_dir) / f"shard-{number:05d}.jsonl"


def write(place: Path, rows: Iterable[Row | Dropped]) -> None:
    """Write a shard whole, or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(place.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        for row in rows:
            if isinstance(row, Dropped):
                line = {"dropped": dataclasses.asdict(row)}
            else:
                line = {"row": row[0], "example": store.to_json(row[1])}
            file.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")
    os.replace(aside, place)


def write_json(place: Path, value: object) -> None:
    """Write a JSON file whole, or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(place.name + ".tmp")
    aside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", "utf-8")
    os.replace(aside, place)


def read(place: Path) -> tuple[list[Row], list[Dropped]]:
    """A finished shard: the rows that go on, and those that ended."""
    kept, dropped = [], []
    with place.open(encoding="utf-8") as file:
        for value in map(json.loads, file):
            if "dropped" in value:
                dropped.append(Dropped(**value["dropped"]))
            else:
                kept.append((value["row"], store.from_json(value["example"])))
    return kept, dropped


def ended(place: Path) -> tuple[int, list[Dropped]]:
    """How many rows of a finished shard go on, and those that ended; reads no media."""
    kept, dropped = 0, []
    with place.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith('{"dropped"'):
                dropped.append(Dropped(**json.loads(line)["dropped"]))
            else:
                kept += 1
    return kept, dropped


def finished(stage_dir: Path) -> Sequence[Path]:
    """A stage's finished shards in order."""
    return sorted(Path(stage_dir).glob("shard-*.jsonl"))
