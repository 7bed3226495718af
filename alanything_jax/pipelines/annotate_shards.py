"""Rows in fixed shards on disk: each written aside and renamed, so done or not there.

A line of `STAGE/shard-00000.jsonl` is `{"row": n, "example": ...}`, the Example as
`store.to_json` gives it, or `{"dropped": {...}}`, a record that ended here and why.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data import store
from alanything_jax.data.quarantine import Quarantine
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


# --- what a run kept and lost ---


def account(run_dir: Path, names: Sequence[str], total: int, max_share: float) -> None:
    """List every record that ended in the named stages, in `quarantine.jsonl`.

    Raises TooManyBad: more than `max_share` of `total`.
    """
    quarantine = Quarantine(run_dir / "quarantine.jsonl", max_share, seen=total)
    for name in names:
        for place in finished(run_dir / name):
            for d in ended(place)[1]:
                where = f"{name}/{d.question}" if d.question else name
                error = ValueError(f"{d.id}: {d.cause}: {d.reason}")
                quarantine.add(where, d.row, error)
    quarantine.close()


def table(run_dir: Path, names: Sequence[str], total: int) -> dict[str, Any]:
    """Per stage the rows in and out, and what ended, by cause; ties; order flips.

    `waiting` are rows of shards that are not finished. `order_flips` counts the choices
    that changed with the order of presentation: the judge's position bias.
    """
    stages, rows, ties = {}, total, 0
    flips = {"differ": 0, "of": 0}
    for name in names:
        kept, causes = 0, collections.Counter()
        for place in finished(run_dir / name):
            count, dropped = ended(place)
            kept += count
            causes.update(entry.cause for entry in dropped)
            if name == names[-1]:
                here, _ = read(place)
                ties += sum(example.feedback.chosen is None for _, example in here)
                _count_flips(flips, here)
        stages[name] = {
            "in": rows,
            "out": kept,
            "dropped": dict(sorted(causes.items())),
            "waiting": rows - kept - causes.total(),
        }
        rows = kept
    return {"prompts": total, "stages": stages, "ties": ties, "order_flips": flips}


def _count_flips(flips, rows):
    for _, example in rows:
        for entry in example.extra.get("choices", ()):
            if len(entry.get("orders", ())) > 1:
                flips["of"] += 1
                flips["differ"] += len(set(entry["orders"])) > 1


def describe(table: Mapping[str, Any]) -> str:
    """The yield table as lines of text."""
    lines = [f"yield of {table['prompts']} prompts:"]
    for name, stage in table["stages"].items():
        lost = ", ".join(f"{n} {cause}" for cause, n in stage["dropped"].items())
        lines.append(f"  {name:<10} {stage['in']:>7} -> {stage['out']:>7}  {lost}")
    flips = table["order_flips"]
    lines.append(
        f"  {table['ties']} ties; {flips['differ']} of {flips['of']} choices changed "
        "with the order"
    )
    return "\n".join(lines)
