"""Rewards by rule: `(prompt, response, record) -> score`, pure, of text in any language.

`record` holds what the row says of the right answer; each maker of a reward is told which
field that is. A row without the field is an error of the data, never a score of zero.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alanything_jax.schema import Message, Response

Reward = Callable[[Sequence[Message], Response, Mapping[str, Any]], float]


def text_of(response: Response) -> str:
    """What a response says; its media are left out."""
    return "".join(message.text for message in response.messages)


def _wanted(record, field):
    if field not in record:
        raise KeyError(f"the record has no {field!r}; it has {sorted(record)}.")
    return record[field]


def exact(field: str = "answer", ignore_case: bool = True) -> Reward:
    """1 where the response says the record's answer and nothing else, but for spaces."""

    def plain(text):
        text = " ".join(str(text).split())
        return text.casefold() if ignore_case else text

    def reward(prompt, response, record):
        return float(plain(text_of(response)) == plain(_wanted(record, field)))

    return reward


def choice(field: str = "answer", letters: str = "ABCDE") -> Reward:
    """1 where the last letter that stands alone, such as "(B)" or "B.", is the right one."""
    pattern = re.compile(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z])")

    def reward(prompt, response, record):
        wanted = str(_wanted(record, field)).strip()
        if wanted not in letters or len(wanted) != 1:
            raise ValueError(f"{field}={wanted!r}: give one letter of {letters}.")
        found = pattern.findall(text_of(response))
        return float(bool(found) and found[-1] == wanted)

    return reward


def math(field: str = "answer") -> Reward:
    """1 where the response's final expression equals the record's, by `math-verify`.

    Raises ImportError: the package is not there.
    """
    try:
        import math_verify
    except ImportError as error:
        raise ImportError(
            "the math reward needs math-verify: pip install 'alanything_jax[math]'."
        ) from error
    # Its own time limits work by signals, which threads do not get: see `combine.score`.
    plain = {"parsing_timeout": None}

    def reward(prompt, response, record):
        gold = math_verify.parse(str(_wanted(record, field)), **plain)
        if not gold:
            raise ValueError(f"{field}={record[field]!r} is no expression.")
        said = math_verify.parse(text_of(response), **plain)
        return float(math_verify.verify(gold, said, timeout_seconds=None))

    return reward


def tags(names: Sequence[str] = ("think", "answer")) -> Reward:
    """1 where the response is these elements in order, each once, and nothing beside."""
    whole = re.compile(
        r"\s*".join(["", *(rf"<{n}>(?:(?!</?{n}>).)*</{n}>" for n in names), ""]), re.S
    )

    def reward(prompt, response, record):
        return float(whole.fullmatch(text_of(response)) is not None)

    return reward


def length(free: int, most: int) -> Reward:
    """0 up to `free` characters, then falling in a line to -1 at `most`."""
    if not 0 <= free < most:
        raise ValueError(f"length({free}, {most}): give 0 <= free < most.")

    def reward(prompt, response, record):
        over = len(text_of(response)) - free
        return -min(max(over / (most - free), 0.0), 1.0)

    return reward


def similarity(field: str = "answer") -> Reward:
    """0 to 1: the share of characters that the response and the answer have in common
    runs (Ratcliff and Obershelp, as `difflib` has it)."""

    def reward(prompt, response, record):
        wanted = str(_wanted(record, field))
        matcher = difflib.SequenceMatcher(None, wanted, text_of(response), False)
        return matcher.ratio()

    return reward
