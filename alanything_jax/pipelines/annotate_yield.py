"""What an annotation run kept and lost: the yield table, the quarantine list."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data.quarantine import Quarantine
from alanything_jax.pipelines import annotate_shards as shards


def account(run_dir: Path, names: Sequence[str], total: int, max_share: float) -> None:
    """List every record that ended in the named stages, in `quarantine.jsonl`.

    Raises:
      TooManyBad: more than `max_share` of `total`.
    """
    quarantine = Quarantine(run_dir / "quarantine.jsonl", max_share, seen=total)
    for name in names:
        for place in shards.finished(run_dir / name):
            for d in shards.ended(place)[1]:
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
        for place in shards.finished(run_dir / name):
            count, dropped = shards.ended(place)
            kept += count
            causes.update(entry.cause for entry in dropped)
            if name == names[-1]:
                here, _ = shards.read(place)
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
