"""Rows asked once: each finished row is a line on disk, and a restart skips it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data.files import lines
from alanything_jax.rewards.judge import Judge, Question, Reply
from alanything_jax.training.run_dir import append


def evaluate_rows(
    rows: Iterable[Any],
    ask: Callable[[Sequence[Any]], Mapping[str, Mapping[str, Any]]],
    path: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    stamp: Callable[[Any], str] | None = None,
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

    Raises ValueError: ids that repeat, results for other rows than were asked, a file
    made under other settings or damaged before its last line.
    """
    rows, path = list(rows), Path(path)
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"row ids repeat: {twice[:5]}; give every row its own.")
    header = json.loads(json.dumps({"settings": dict(settings or {})}))
    stamps = {row.id: stamp(row) if stamp else "" for row in rows}
    done = _finished(path, header, stamps)
    failed = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or not path.stat().st_size:
        append(path, header)
    todo = [row for row in rows if row.id not in done]
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
                append(path, line)
                done[row.id] = result
    return {i: failed[i] if i in failed else done[i] for i in ids}


def judged(
    judge: Judge,
    decided: Callable[[Any], Mapping[str, Any] | None],
    question: Callable[[Any], Question],
    read: Callable[[Any, Reply], Mapping[str, Any]],
) -> Callable[[Sequence[Any]], dict[str, Mapping[str, Any]]]:
    """An `ask` for `evaluate_rows`: `decided(row)`, or where that is None the judge's reply.

    Args:
      read: (row, reply to `question(row)`) -> result.
    """

    def ask(rows):
        results = {row.id: decided(row) for row in rows}
        open = [row for row in rows if results[row.id] is None]
        replies = judge([question(row) for row in open]) if open else {}
        return results | {row.id: read(row, replies[row.id]) for row in open}

    return ask


def _finished(path, header, stamps):
    """Results on disk by row id, of rows that have not changed since."""
    try:
        first, *rest = lines(path) or [header]
        if first != header:
            theirs, ours = first.get("settings"), header["settings"]
            raise ValueError(f"its settings are {theirs!r}, now {ours!r}")
        rest = [(r["id"], r["stamp"], r["result"]) for r in rest]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be continued: {error}. Move it away, or give another path."
        ) from error
    return {id: result for id, stamp, result in rest if stamps.get(id) == stamp}
