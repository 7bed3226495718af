"""Anthropic's hh-rlhf: `chosen` and `rejected` are each one transcript string.

    "\\n\\nHuman: hi\\n\\nAssistant: hello\\n\\nHuman: bye\\n\\nAssistant: see you"

The transcripts are split at the last assistant turn of their common prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.schema import Example, Feedback, Response

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def claims(row: Mapping[str, Any]) -> bool:
    """Whether both sides are transcript strings."""
    sides = [row.get("chosen"), row.get("rejected")]
    return all(isinstance(s, str) and s.startswith("\n\nHuman:") for s in sides)


def read(row: Mapping[str, Any], id: str) -> Example:
    """One row. Raises BadRecord where a transcript cannot be split."""
    chosen, rejected = common.need(row, "chosen"), common.need(row, "rejected")
    shared = 0
    while (
        shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]
    ):
        shared += 1
    # A turn's marker counts as shared only if all of it is.
    cuts = [m.end() for m in _TURN.finditer(chosen) if m.end() <= shared]
    cuts = [end for end in cuts if chosen[:end].endswith("Assistant:")]
    if not cuts:
        raise BadRecord(
            "chosen/rejected",
            'no common prefix that ends in "\\n\\nAssistant:"; both must be transcripts '
            "of the same conversation.",
        )
    head = cuts[-1]
    sides = tuple(
        Response((common.text("assistant", first), *later))
        for first, later in (_continuation(side[head:]) for side in (chosen, rejected))
    )
    prompt = _turns(chosen[: head - len("\n\nAssistant:")])
    return Example(
        id, prompt, sides, Feedback(chosen=0), common.rest(row, {"chosen", "rejected"})
    )


def _continuation(tail):
    """The assistant's text, and turns after it if the sides go on."""
    match = _TURN.search(tail)
    if not match:
        return tail.strip(), ()
    return tail[: match.start()].strip(), _turns(tail[match.start() :])


def _turns(transcript):
    pieces = _TURN.split(transcript)
    if pieces[0].strip():
        raise BadRecord("chosen", f"text before the first turn: {pieces[0][:40]!r}")
    return tuple(
        common.text(_ROLES[role], said.strip())
        for role, said in zip(pieces[1::2], pieces[2::2], strict=True)
    )
