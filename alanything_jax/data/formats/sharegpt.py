"""ShareGPT and LLaMA-Factory rows.

    {"conversations": [{"from": "human", "value": V}], "chosen": {"from": "gpt", ...},
     "rejected": {...}}                                   preference
    {"conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}      SFT
`system` may be a field, or the first turn. Media may stand in the columns `image(s)`,
`audio(s)`, `video(s)`, with `<image>`, `<audio>`, `<video>` in the texts where they belong
(LLaVA, LLaMA-Factory): see `media_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common, media_columns
from alanything_jax.schema import Example, Feedback, Response

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def claims(row: Mapping[str, Any]) -> bool:
    """Whether the row has ShareGPT's list of turns."""
    return isinstance(row.get("conversations"), list)


def read(row: Mapping[str, Any], id: str) -> Example:
    """One row. Raises BadRecord naming the field at fault."""
    return media_columns.fill(_read(row, id), row)


def _read(row, id):
    turns = common.need(row, "conversations")
    said = tuple(_turn(t, f"conversations[{n}]") for n, t in enumerate(turns))
    if row.get("system"):
        system = common.string(row["system"], "system")
        said = (common.text("system", system), *said)
    extra = common.rest(
        row, {"conversations", "system", "chosen", "rejected", "kto_tag"}
    )
    if "chosen" in row or "rejected" in row:
        sides = tuple(
            Response((_turn(common.need(row, side), side),))
            for side in ("chosen", "rejected")
        )
        return Example(id, said, sides, Feedback(chosen=0), extra)
    labels = (bool(row["kto_tag"]),) if "kto_tag" in row else ()
    first = next((n for n, m in enumerate(said) if m.role == "assistant"), None)
    if not first:
        raise BadRecord("conversations", "needs a human turn, then a gpt turn.")
    return Example(
        id, said[:first], (Response(said[first:]),), Feedback(labels=labels), extra
    )


def _turn(turn, field):
    if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
        raise BadRecord(field, f"needs from and value, got {turn!r:.60}")
    if common.string(turn["from"], f"{field}.from") not in _ROLES:
        raise BadRecord(
            field, f"unknown speaker {turn['from']!r}; known: {sorted(_ROLES)}"
        )
    said = common.string(turn["value"], f"{field}.value")
    return common.text(_ROLES[turn["from"]], said)
