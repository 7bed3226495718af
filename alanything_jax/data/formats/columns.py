"""Any table with a column map: `prompt=question, chosen=good_answer, ...`.

Several columns of text are one when joined, `prompt=passage+question`: a blank between.
`prompt=...` alone reads prompts for rollouts, with all else of a row in their record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alanything_jax.data.formats import common, media_columns, trl
from alanything_jax.schema import Example

KNOWN = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "messages",
    "score_chosen",
    "score_rejected",
    "images",
    "audios",
    "videos",
)


def reader(column_map: Sequence[str]) -> Callable[[Mapping[str, Any], str], Example]:
    """A reader that renames columns to TRL's names and reads the row as TRL's.

    Raises ValueError: an entry is not `ours=theirs` with a name of ours.
    """
    names = {}
    for item in column_map:
        ours, _, theirs = item.partition("=")
        if ours not in KNOWN or not theirs:
            raise ValueError(
                f"column map {item!r}: write OURS=THEIRS with OURS one of {KNOWN}."
            )
        names[ours] = theirs.split("+")

    def read(row: Mapping[str, Any], id: str) -> Example:
        renamed = {}
        for ours, theirs in names.items():
            values = [common.need(row, column) for column in theirs]
            one = len(values) == 1
            renamed[ours] = values[0] if one else " ".join(map(str, values))
        used = [column for theirs in names.values() for column in theirs]
        rest = common.rest(row, used)
        if names.keys() & {"chosen", "rejected", "completion", "messages"}:
            return trl.read(rest | renamed, id)
        # Prompts to be answered; what else a row says is for rewards to read.
        media = {kind: rest.pop(kind) for kind in media_columns.KINDS if kind in rest}
        example = trl.read(media | renamed, id)
        return dataclasses.replace(example, extra=dict(example.extra) | rest)

    return read
