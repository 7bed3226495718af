"""Rewards by rule: `(prompt, response, record) -> score`, pure, of text in any language.

Each is a dataclass that is called, so that a recipe can name it. `record` holds what the
row says of the right answer, in a field that the rule is told; a row without the field is
an error of the data, never a score of zero. A rollout adds `num_tokens` and `finished`.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Exact:
    """1 where the response says the record's answer and nothing else, but for spaces."""

    field: str = "answer"
    ignore_case: bool = True

    def __call__(self, prompt, response, record) -> float:
        """0 or 1."""
        said, wanted = text_of(response), _wanted(record, self.field)
        return float(self._plain(said) == self._plain(wanted))

    def _plain(self, text):
        text = " ".join(str(text).split())
        return text.casefold() if self.ignore_case else text


@dataclasses.dataclass(frozen=True)
class Choice:
    """1 where the last letter that stands alone, such as "(B)" or "B.", is the right one."""

    field: str = "answer"
    letters: str = "ABCDE"

    def __call__(self, prompt, response, record) -> float:
        """0 or 1."""
        wanted = str(_wanted(record, self.field)).strip()
        if wanted not in self.letters or len(wanted) != 1:
            raise ValueError(
                f"{self.field}={wanted!r}: give one letter of {self.letters}."
            )
        pattern = rf"(?<![A-Za-z])([{self.letters}])(?![A-Za-z])"
        found = re.findall(pattern, text_of(response))
        return float(bool(found) and found[-1] == wanted)


@dataclasses.dataclass(frozen=True)
class Math:
    """1 where the response's final expression equals the record's, by `math-verify`.

    Raises ImportError: the package is not there.
    """

    field: str = "answer"

    def __call__(self, prompt, response, record) -> float:
        """0 or 1."""
        try:
            import math_verify
        except ImportError as error:
            raise ImportError(
                "the math reward needs math-verify: pip install 'alanything_jax[math]'."
            ) from error
        # Its own time limits work by signals, which threads do not get: see
        # `combine.score`.
        plain = {"parsing_timeout": None}
        gold = math_verify.parse(str(_wanted(record, self.field)), **plain)
        if not gold:
            raise ValueError(f"{self.field}={record[self.field]!r} is no expression.")
        said = math_verify.parse(text_of(response), **plain)
        return float(math_verify.verify(gold, said, timeout_seconds=None))


@dataclasses.dataclass(frozen=True)
class Tags:
    """1 where the response is these elements in order, each once, and nothing beside."""

    names: Sequence[str] = ("think", "answer")

    def __call__(self, prompt, response, record) -> float:
        """0 or 1."""
        parts = (rf"<{n}>(?:(?!</?{n}>).)*</{n}>" for n in self.names)
        whole = r"\s*".join(["", *parts, ""])
        return float(re.fullmatch(whole, text_of(response), re.S) is not None)


@dataclasses.dataclass(frozen=True)
class Length:
    """0 up to `free` characters, then falling in a line to -1 at `most`."""

    free: int
    most: int

    def __post_init__(self):
        if not 0 <= self.free < self.most:
            raise ValueError(f"{self}: give 0 <= free < most.")

    def __call__(self, prompt, response, record) -> float:
        """-1 .. 0."""
        over = len(text_of(response)) - self.free
        return -min(max(over / (self.most - self.free), 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Overlong:
    """DAPO's soft punishment of length (arXiv:2503.14476, equation 13): 0 up to `most` -
    `buffer` tokens, then falling in a line to -1 at `most`."""

    most: int
    buffer: int

    def __post_init__(self):
        if not 0 < self.buffer <= self.most:
            raise ValueError(f"{self}: give 0 < buffer <= most.")

    def __call__(self, prompt, response, record) -> float:
        """-1 .. 0."""
        over = _wanted(record, "num_tokens") - (self.most - self.buffer)
        return -min(max(over / self.buffer, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """0 to 1: the share of characters that the response and the answer have in common
    runs (Ratcliff and Obershelp, as `difflib` has it)."""

    field: str = "answer"

    def __call__(self, prompt, response, record) -> float:
        """0 .. 1."""
        wanted = str(_wanted(record, self.field))
        return difflib.SequenceMatcher(None, wanted, text_of(response), False).ratio()
