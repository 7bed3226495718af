"""What readers share: messages from strings and lists, and fields that must exist."""

from __future__ import annotations

import base64
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.data.encode import BadRecord
from alanything_jax.schema import Example, Message, Part, Response


def text(role: str, content: str) -> Message:
    """One text message."""
    return Message(role, (Part("text", text=content),))


def string(value: Any, field: str) -> str:
    """The value, which must be text. Raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord(field, f"expected text, got {value!r:.60}")
    return value


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
        role = string(item["role"], f"{field}[{n}].role")
        out.append(Message(role, parts(item["content"], f"{field}[{n}].content")))
    return tuple(out)


def parts(content: Any, field: str) -> tuple[Part, ...]:
    """Parts from a string, or from a list of {"type": "text"|"image"|..., ...}."""
    if isinstance(content, str):
        return (Part("text", text=content),)
    if not isinstance(content, list | tuple):
        raise BadRecord(field, f"expected text or a list of parts, got {content!r:.60}")
    out = []
    for item in content:
        kind = item.get("type") if isinstance(item, Mapping) else item
        if kind not in ("text", "image", "audio", "video"):
            raise BadRecord(field, f"part of unknown type {kind!r}")
        if kind == "text":
            out.append(Part("text", text=string(item.get("text") or "", field)))
            continue
        value = item.get(kind) or item.get("url") or item.get("path")
        # Without a value it is a placeholder for the next of the row's media.
        out.append(Part(kind) if value is None else medium(kind, value, field))
    return tuple(out)


def medium(kind: str, value: Any, field: str) -> Part:
    """A media part from a path, bytes, samples, or a struct as Hugging Face stores it.

    A struct is {"bytes", "path"} or {"array", "sampling_rate"}; what else is in it goes
    to the part's `meta`, and so does a path beside bytes.

    Raises BadRecord: none of these.
    """
    meta = dict(value) if isinstance(value, Mapping) else {}
    raw, array = meta.pop("bytes", None), meta.pop("array", None)
    meta = {name: held for name, held in meta.items() if held is not None}
    if isinstance(value, bytes) or raw:
        return Part(kind, data=raw or value, meta=meta)
    if array is not None and "sampling_rate" in meta:
        meta["rate"] = int(meta.pop("sampling_rate"))
        return Part(kind, data=np.asarray(array, np.float32), meta=meta)
    uri = value if isinstance(value, str) else meta.pop("path", None)
    if isinstance(uri, str) and uri.startswith("data:"):
        return Part(kind, data=_of_data_uri(uri, field), meta=meta)
    if not uri or not isinstance(uri, str):
        raise BadRecord(
            field,
            f"expected a path, bytes, or a struct of bytes and path or of array and "
            f"sampling_rate, got {value!r:.60}",
        )
    return Part(kind, uri=uri, meta=meta)


def _of_data_uri(uri, field):
    """The bytes of `data:image/png;base64,...` (RFC 2397)."""
    head, _, body = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise BadRecord(field, f"{uri:.60} cannot be read: {error}") from error


def map_parts(example: Example, change: Callable[[Part], Sequence[Part]]) -> Example:
    """The example with every part of prompt and responses replaced, in order."""

    def messages(some):
        return tuple(
            dataclasses.replace(m, parts=tuple(q for p in m.parts for q in change(p)))
            for m in some
        )

    prompt = messages(example.prompt)
    responses = tuple(Response(messages(r.messages)) for r in example.responses)
    return dataclasses.replace(example, prompt=prompt, responses=responses)


def response(value: Any, field: str) -> Response:
    """A response from a string or a list of messages."""
    return Response(messages(value, field, "assistant"))


def rest(row: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields that no part of the Example holds: kept, never dropped."""
    return {name: value for name, value in row.items() if name not in set(used)}
