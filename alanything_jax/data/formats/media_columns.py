"""Media that stand in columns of a row, put where its messages say so.

    {"images": [A, B], "messages": [{"role": "user", "content": [
        {"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]}, ...]}   TRL
    {"images": [A, B], "messages": [{"role": "user", "content": "<image>or<image>"}, ...]}
                                                                           LLaMA-Factory
    {"image": A, "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]}
                                                                        LLaVA, ShareGPT
    -> user: [A] "or" [B]

The columns are `image`, `audio`, `video` and their plurals; A is a path, or a struct of
`common.medium`. The media of a kind are taken in order: prompt, then each response.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.schema import Example, Part

KINDS = {name: k for k in ("image", "audio", "video") for name in (k, f"{k}s")}
_MARK = re.compile(r"<(image|audio|video)>")


def fill(example: Example, row: Mapping[str, Any], lead: bool = False) -> Example:
    """The example with the row's media at its placeholders.

    A placeholder is a media part with nothing in it. Where there is none in the row, it
    is the mark `<image>`, `<audio>` or `<video>` in a text, if the row has a column of
    that kind; without one, such words are text like any other.

    Args:
      lead: media of messages without a placeholder stand before the first user's text, as
        TRL puts them.

    Raises BadRecord: placeholders and media of a kind differ in number.
    """
    given: dict[str, list[Part]] = {}
    for name in KINDS.keys() & row.keys():
        value = row[name]
        listed = value if isinstance(value, list | tuple) else [value]
        given.setdefault(KINDS[name], []).extend(
            common.medium(KINDS[name], item, f"{name}[{n}]")
            for n, item in enumerate(listed)
            if item is not None
        )
    if not any(map(_empty, _parts(example))):
        example = common.map_parts(example, lambda part: _split(part, given))
    wanted = collections.Counter(p.kind for p in _parts(example) if _empty(p))
    if lead and given and not wanted:
        example = _lead(example, [part for some in given.values() for part in some])
        given = {}
    for kind in sorted(given.keys() | wanted.keys()):
        have, need = len(given.get(kind, ())), wanted[kind]
        if have != need:
            raise BadRecord(
                f"{kind}s", f"{have} given for {need} placeholders of the messages."
            )
    left = {kind: iter(some) for kind, some in given.items()}
    example = common.map_parts(
        example, lambda part: [next(left[part.kind]) if _empty(part) else part]
    )
    return dataclasses.replace(example, extra=common.rest(example.extra, KINDS))


def _parts(example):
    sides = (example.prompt, *(r.messages for r in example.responses))
    return [part for side in sides for message in side for part in message.parts]


def _empty(part):
    return part.kind != "text" and part.data is None and part.uri is None


def _split(part, kinds):
    """A text cut at the marks of `kinds`."""
    if part.kind != "text" or not kinds:
        return [part]
    pieces, begin, text = [], 0, part.text or ""
    for mark in _MARK.finditer(text):
        if mark[1] in kinds:
            pieces += [Part("text", text=text[begin : mark.start()]), Part(mark[1])]
            begin = mark.end()
    pieces.append(Part("text", text=text[begin:]))
    kept = [p for p in pieces if p.kind != "text" or p.text]
    return kept or [part]


def _lead(example, media):
    """Media before the first user message's parts; as it is without such a message."""
    said = list(example.prompt)
    at = next((n for n, m in enumerate(said) if m.role == "user"), None)
    if at is None:
        raise BadRecord("messages", f"no user message for {len(media)} media.")
    said[at] = dataclasses.replace(said[at], parts=(*media, *said[at].parts))
    return dataclasses.replace(example, prompt=tuple(said))
