"""One battle of the arena: what the judge is asked, and what its replies mean."""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax import schema
from alanything_jax.data import media
from alanything_jax.data.files import digest
from alanything_jax.data.store import to_json
from alanything_jax.rewards.judge import Question, Reply

Prompt = tuple[schema.Message, ...]

TEMPLATES = Path(__file__).parents[1] / "data" / "templates" / "arena"
_SIGN = r"\s*(?:<{1,2}|>{1,2}|={1,2})\s*"
_VERDICT = re.compile(rf"\[\[\s*(A|B|C|TIE|A{_SIGN}B|B{_SIGN}A)\s*\]\]", re.I)


@dataclasses.dataclass(frozen=True)
class Battle:
    """Two models' answers to one prompt; `models` and `responses` are in one order."""

    id: str
    prompt_id: str
    prompt: Prompt
    models: tuple[str, str]
    responses: tuple[schema.Response, schema.Response]


def is_empty(response: schema.Response) -> bool:
    """No media, and no text but white space."""
    parts = schema.parts_of(response.messages)
    return not any(p.kind != "text" or (p.text or "").strip() for p in parts)


def same_answers(battle: Battle) -> bool:
    """Both models gave exactly the same answer."""
    first, second = map(to_json, battle.responses)
    return first == second


def fingerprint(battle: Battle) -> str:
    """What a judgement holds for: this prompt and these two answers."""
    return digest([battle.id, battle.prompt, battle.responses])


def question(battle: Battle, swapped: bool, templates: Path = TEMPLATES) -> Question:
    """What the judge is asked of a battle; `swapped` shows the second answer as A.

    The template is filled in before the answers are, which may hold any text and media;
    the lines around them carry a tag that no answer can have foreseen.
    """
    first, second = battle.responses[::-1] if swapped else battle.responses
    template = string.Template((templates / "question.txt").read_text("utf-8"))
    marks = {"prompt": "\0 0 \0", "first": "\0 1 \0", "second": "\0 2 \0"}
    text = template.substitute(marks, tag=fingerprint(battle))
    filling = [_shown(m) for m in (battle.prompt, first.messages, second.messages)]
    parts: list[schema.Part] = []
    for n, piece in enumerate(re.split("\0 ([012]) \0", text.strip())):
        parts += filling[int(piece)] if n % 2 else [schema.Part("text", piece)]
    system = (templates / "system.txt").read_text("utf-8").strip()
    system = schema.Message("system", (schema.Part("text", system),))
    messages = (system, schema.Message("user", tuple(_joined(parts))))
    return Question(f"{battle.id} {'BA' if swapped else 'AB'}", messages)


def _shown(messages):
    """Parts of one message, or of several, each after its role."""
    if is_empty(schema.Response(tuple(messages))):
        return [schema.Part("text", "(nothing)")]
    parts = []
    for message in messages:
        if len(messages) > 1:
            parts.append(schema.Part("text", f"\n[{message.role}]\n"))
        parts += [with_bytes(part) for part in message.parts]
    return parts


def with_bytes(part: schema.Part) -> schema.Part:
    """Local files and samples as bytes; what cannot be read is left for the judge to name."""
    samples = part.kind == "audio" and isinstance(part.data, np.ndarray)
    if part.kind == "text" or (part.data is not None and not samples):
        return part
    try:
        raw = media.as_file(part)
    except (media.MediaError, OSError):
        return part
    # No record makes us send a file that is no medium.
    return dataclasses.replace(part, data=raw, uri=None) if media.mime_of(raw) else part


def _joined(parts):
    """Neighbouring text parts as one."""
    for is_text, some in itertools.groupby(parts, lambda part: part.kind == "text"):
        if is_text:
            yield schema.Part("text", "".join(part.text or "" for part in some))
        else:
            yield from some


def verdict(text: str) -> str | None:
    """A, B or C (neither) as the judge's text says it; None where it does not.

    A verdict alone on the last line counts. Else all verdicts in the text must agree: a
    reply that only repeats the instructions names all three, and decides nothing.
    """
    lines = [line.strip(" \t*_`.#>") for line in text.splitlines() if line.strip()]
    last = re.sub(r"(?i)^[^\[]*verdict[^\[\w]*(?:is)?[^\[\w]*", "", (lines or [""])[-1])
    if alone := _VERDICT.fullmatch(last):
        return _letter(alone[1])
    found = {_letter(match[1]) for match in _VERDICT.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _letter(said):
    said = re.sub(r"\s", "", said.upper())
    if said in ("C", "TIE") or "=" in said:
        return "C"
    return said[-1] if "<" in said else said[0]


def settle(orders: Sequence[bool], replies: Sequence[Reply]) -> dict[str, Any]:
    """Outcome of a battle (first, second, tie, or None), why, and what the judge said.

    Args:
      orders: of each reply, whether the second answer was shown as A.
    """
    letters = [verdict(reply.text or "") for reply in replies]
    said = {"swapped": list(orders), "verdicts": letters}
    said["replies"] = [reply.text for reply in replies]
    for reply in replies:
        if reply.text is None:
            detail = reply.error or "no text"
            return {"outcome": None, "why": "failed", "detail": detail} | said
    for reply, letter in zip(replies, letters, strict=True):
        if letter is None:
            why = "unparseable" if reply.text.strip() else "empty"
            return {"outcome": None, "why": why, "detail": reply.text[-200:]} | said
    sides = [
        "tie" if letter == "C" else "second" if (letter == "A") == swapped else "first"
        for letter, swapped in zip(letters, orders, strict=True)
    ]
    if len(set(sides)) == 1:
        why = "agreed" if len(sides) > 1 else "judged"
        return {"outcome": sides[0], "why": why} | said
    return {"outcome": "tie", "why": "wavered" if "tie" in sides else "flipped"} | said
