"""Data as a whole: any source to a data set on disk, and what is in a source."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data import groups, store
from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import EncodedGroup, Limits, TooLong, encode
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Source:
    """Any data, and how to read it.

    Attributes:
      path: .json, .jsonl, .parquet, a converted data set or `pypi:PACKAGE==VERSION/FILE`.
      format: a reader of `data/formats`, or "auto".
      columns: `ours=theirs` pairs, such as prompt=question chosen=good rejected=bad.
      subset: which of Align Anything's eight, such as "ti2t"; "" = as the columns tell.
      media_root: the folder that paths of media are relative to, or whose tar archives
        hold them; "" = the file's own.
    """

    path: str
    format: str = "auto"
    columns: tuple[str, ...] = ()
    subset: str = ""
    media_root: str = ""


@dataclasses.dataclass
class Report:
    """What a source holds.

    Attributes:
      bad: (row, reason) of every record that cannot be read or encoded.
      unknown: columns that the format does not know, and in how many records.
      responses, feedback, modalities: how many records have each kind.
      tokens: per kind (prompt, response, group) the lengths, with a tokenizer.
      too_long: records over a token limit; they are sound.
    """

    records: int = 0
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    responses: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    feedback: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    modalities: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    unknown: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    tokens: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    too_long: int = 0


def convert(source: Source, out: Path, max_bad_share: float = 0.05) -> Quarantine:
    """Write a source as a TFDS/ArrayRecord data set.

    Returns:
      What was set aside, also listed in `<out>.quarantine.jsonl`.

    Raises:
      TooManyBad: more bad rows than `max_bad_share`; nothing is written then.
      ValueError: `out` is not empty, or no row is sound.
    """
    out = Path(out)
    listed = out.with_name(out.name + ".quarantine.jsonl")
    quarantine = Quarantine(listed, max_bad_share)

    def sound() -> Iterator[Example]:
        for row, example in _read(source):
            quarantine.seen += 1
            if isinstance(example, Exception):
                quarantine.add(source.path, row, example)
            else:
                quarantine.unknown.update([*example.extra.get("unknown", ())])
                yield example
        quarantine.close()

    store.write(sound(), out)
    return quarantine


def check(
    source: Source,
    tokenizer: Any = None,
    limits: Limits = Limits(),
    coder: Coder | None = None,
) -> Report:
    """Read every record; with a tokenizer, and a coder for its media, encode it too."""
    report = Report()
    for row, example in _read(source):
        report.records += 1
        if isinstance(example, Exception):
            report.bad.append((row, str(example)))
            continue
        _count(report, example)
        if tokenizer is not None:
            try:
                _measure(report, encode(example, tokenizer, limits, coder))
            except TooLong:
                report.too_long += 1
            except ValueError as error:
                report.bad.append((row, str(error)))
    return report


def some(source: Source, first: int, count: int) -> Iterator[tuple[int, Any]]:
    """Records `first` to `first + count - 1` with their row numbers."""
    for row, example in _read(source):
        if row >= first + count:
            return
        if row >= first:
            yield row, example


def _read(source):
    return groups.examples(
        source.path,
        source.format,
        source.columns,
        subset=source.subset,
        media_folder=source.media_root,
    )


def _count(report: Report, example: Example) -> None:
    feedback = example.feedback
    report.unknown.update([*example.extra.get("unknown", ())])
    report.responses[len(example.responses)] += 1
    report.feedback["preference"] += feedback.chosen is not None
    report.feedback["margin"] += feedback.margin is not None
    report.feedback["label"] += bool(feedback.labels)
    report.feedback["rating"] += bool(feedback.ratings)
    report.feedback["critique"] += bool(feedback.critiques)
    sides = {
        "prompt": example.prompt,
        "response": [m for r in example.responses for m in r.messages],
    }
    for side, messages in sides.items():
        for kind in {part.kind for message in messages for part in message.parts}:
            report.modalities[f"{kind} in {side}"] += 1


def _measure(report: Report, group: EncodedGroup) -> None:
    sizes = [len(branch.tokens) for branch in group.branches]
    for name, values in {
        "prompt": [len(group.prompt)],
        "response": sizes,
        "group": [len(group.prompt) + sum(sizes)],
    }.items():
        report.tokens.setdefault(name, []).extend(values)


def quantiles(values: list[int]) -> dict[str, int]:
    """Smallest, median, 90th percentile, largest."""
    return {
        "min": min(values),
        "median": int(np.median(values)),
        "90%": int(np.percentile(values, 90)),
        "max": max(values),
    }
