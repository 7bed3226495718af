"""What readers share: messages from strings and lists, and fields that must exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.schema import Message, Part, Response


def text(role: str, content: str) -> Message:
    """One text message."""
    return Message(role, (Part("text", text=content),))


def need(row: Mapping[str, Any], field: str) -> Any:
    """A field's value.

    Raises BadRecord: the row lacks it; names the fields it has and the nearest.
    """
    if field in row and row[field] is not None:
        return row[field]
    near = difflib.get_close_matches(field, row, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BadRecord(field, f"missing; the row has {sorted(row)}.{hint}")


def messages(value: Any, field: str, role: str) -> tuple[Message, ...]:
    """Messages from a string (one message of `role`) or a list of {role, content}.

    Raises BadRecord: neither, or an entry without role and content.
    """
    if isinstance(value, str):
        return (text(role, value),)
    if not isinstance(value, list | tuple):
        raise BadRecord(
            field, f"expected text or a list of messages, got {value!r:.60}"
        )
    out = []
    for n, item in enumerate(value):
        if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
            raise BadRecord(
                f"{field}[{n}]", f"needs role and content, got {item!r:.60}"
            )
        out.append(
            Message(item["role"], parts(item["content"], f"{field}[{n}].content"))
        )
    return tuple(out)


def parts(content: Any, field: str) -> tuple[Part, ...]:
    """Parts from a string, or from a list of {"type": "text"|"image"|..., ...}."""
    if isinstance(content, str):
        return (Part("text", text=content),)
    if not isinstance(content, list | tuple):
        raise BadRecord(field, f"expected text or a list of parts, got {content!r:.60}")
    out = []
    for item in content:
        kind = item.get("type")
        if kind not in ("text", "image", "audio", "video"):
            raise BadRecord(field, f"part of unknown type {kind!r}")
        value = item.get(kind, item.get("url"))
        named = {"text": "text"}.get(
            kind, "data" if isinstance(value, bytes) else "uri"
        )
        out.append(Part(kind, **{named: value}))
    return tuple(out)


def response(value: Any, field: str) -> Response:
    """A response from a string or a list of messages."""
    return Response(messages(value, field, "assistant"))


def rest(row: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields that no part of the Example holds: kept, never dropped."""
    return {name: value for name, value in row.items() if name not in set(used)}
