"""What the arena's report says: ratings, win matrix, what could not be counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax import schema
from alanything_jax.evaluation import bradley_terry
from alanything_jax.pipelines.arena_battle import Battle, is_empty

REASONS = "agreed judged flipped wavered identical unparseable empty".split()


def summarize(
    answers: Mapping[tuple[str, str], schema.Response | None],
    fights: Sequence[Battle],
    settled: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, Mapping[str, Any]],
    **options: Any,
) -> dict[str, Any]:
    """The report.

    Args:
      answers: by (model, prompt id).
      settled, failed: records of `battles.jsonl` and `failed.jsonl`, by battle.
      options: as `bradley_terry.rate` takes them.
    """
    names = list(dict.fromkeys(name for name, _ in answers))
    records = [settled[b.id] for b in fights if b.id in settled]
    left = [b.id for b in fights if b.id not in settled]
    counts = {why: sum(r["why"] == why for r in records) for why in REASONS}
    counts |= {"failed": len(failed), "not asked": len(left) - len(failed)}
    unread = [r for r in records if r["outcome"] is None] + list(failed.values())
    wins, ties = tally(names, records)
    ratings, notes = _ratings(names, wins, ties, options)
    blank = [list(at) for at, given in answers.items() if given and is_empty(given)]
    rated = int(wins.sum() + ties.sum() / 2)
    return {
        "complete": not left,
        "models": names,
        "prompts": len({key for _, key in answers}),
        "ratings": ratings,
        "win_matrix": wins.sum(axis=0).astype(int).tolist(),
        "tie_matrix": ties.sum(axis=0).astype(int).tolist(),
        "battles": {"planned": len(fights), "rated": rated} | counts,
        "places": _places(records),
        "unread": [{k: r.get(k) for k in ("id", "why", "detail")} for r in unread],
        "missing_answers": [list(at) for at, given in answers.items() if given is None],
        "empty_answers": blank,
        "notes": notes,
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report in lines a person reads."""
    lines = [
        f"{row['model']:<28} {row['elo'][0]:6.0f}  "
        + (f"[{row['elo'][1]:.0f}, {row['elo'][2]:.0f}]" if row["elo"][1] else "")
        + f"  {row['wins']} won, {row['ties']} tied, {row['losses']} lost"
        for row in report["ratings"]
    ]
    counts = ", ".join(f"{n} {why}" for why, n in report["battles"].items() if n)
    lines += [f"battles: {counts}", *report["notes"]]
    if not report["complete"]:
        lines.append("not complete: start the same command again to ask what is left.")
    return lines


def tally(
    names: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Wins and ties [prompts, M, M] of the battles that have an outcome."""
    place = {name: n for n, name in enumerate(names)}
    counted = [record for record in records if record["outcome"] is not None]
    rows = {key: n for n, key in enumerate(dict.fromkeys(r["prompt"] for r in counted))}
    wins, ties = np.zeros((2, len(rows), len(names), len(names)))
    for record in counted:
        row, pair = rows[record["prompt"]], [place[name] for name in record["models"]]
        if record["outcome"] == "tie":
            ties[row, *pair] += 1
            ties[row, *pair[::-1]] += 1
        else:
            wins[row, *(pair if record["outcome"] == "first" else pair[::-1])] += 1
    return wins, ties


def _ratings(names, wins, ties, options):
    """Rows of the table, best first, and what a reader must know."""
    if not wins.any() and not ties.any():
        return [], ["No battle has an outcome, so nothing is rated."]
    rated = bradley_terry.rate(wins + ties / 2, names=names, **options)
    won, tied = wins.sum(axis=0), ties.sum(axis=0)
    rows = [
        {
            "model": name,
            "elo": [_number(x[n]) for x in (rated.elo, rated.low, rated.high)],
            "wins": int(won[n].sum()),
            "ties": int(tied[n].sum()),
            "losses": int(won[:, n].sum()),
            "above": {
                o: _number(rated.above[n, m]) for m, o in enumerate(names) if m != n
            },
        }
        for n, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -row["elo"][0]), list(rated.notes)


def _number(value):
    return None if math.isnan(value) else round(float(value), 4)


def _places(records):
    """How often the judge chose the first place, the second, neither: its bias."""
    letters = [x for r in records for x in r.get("verdicts", ())]
    return {x: letters.count(x) for x in "ABC"}
