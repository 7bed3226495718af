"""What the oracle notes down: a score per thing looked at, and words for what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.playground.lexicon import NUMBERS

# Which dimension each attribute of a thing belongs to.
DIMENSION_OF = {"number": "number"} | dict.fromkeys(
    ("colour", "shape", "turning", "duration", "start"), "object"
)
DIMENSION_OF |= dict.fromkeys(
    ("region", "relation", "slope", "direction", "lane"), "place"
)


@dataclasses.dataclass(frozen=True)
class Mark:
    """One thing looked at.

    Attributes:
      dimension: one of `lexicon.DIMENSIONS`.
      score: 0 .. 1.
    """

    dimension: str
    score: float


def mark(dimension: str, score: float) -> Mark:
    """A mark whose score is brought into 0 .. 1."""
    return Mark(dimension, min(1.0, max(0.0, float(score))))


def absent() -> list[Mark]:
    """The marks of a thing that is not there."""
    return [Mark(name, 0.0) for name in ("object", "number", "place")]


def by_dimension(marks: Sequence[Mark]) -> dict[str, float]:
    """Mean score of each dimension that has a mark."""
    names = dict.fromkeys(m.dimension for m in marks)
    return {
        name: float(np.mean([m.score for m in marks if m.dimension == name]))
        for name in names
    }


def word(number: int | None) -> str:
    """A count in words."""
    return NUMBERS[number - 1] if number in range(1, len(NUMBERS) + 1) else "many"


def match(
    wanted: Sequence[Any], found: Sequence[Any], likeness: Callable[[Any, Any], float]
) -> list[Any | None]:
    """For each wanted thing the found one it is most like; None for those left over.

    The assignment with the largest total likeness; lists are short.
    """
    slots = [*range(len(found)), *[None] * len(wanted)]
    best, best_total = [None] * len(wanted), -1.0
    for order in itertools.permutations(slots, len(wanted)):
        total = sum(
            likeness(w, found[n]) for w, n in zip(wanted, order) if n is not None
        )
        if total > best_total + 1e-9:
            best, best_total = list(order), total
    return [None if n is None else found[n] for n in best]


def checked(
    wanted: Sequence[Mapping[str, str | None]],
    shown: Sequence[Mapping[str, str | None]],
    dimension: str | None = None,
) -> str:
    """Every attribute that should be there, beside what is there.

    Example:
      "two red circle top but left one missing"
    """

    def likeness(a, b):
        alike = sum(a[role] == b.get(role) for role in a)
        return alike + 0.5 * (wanted.index(a) == shown.index(b))

    said = []
    for thing, there in zip(wanted, match(wanted, shown, likeness)):
        for role, value in thing.items():
            if dimension not in (None, DIMENSION_OF[role]):
                continue
            if there is None:
                said += [str(value), "missing"]
                break
            found = there.get(role)
            if role == "turning" and value == found == "same":
                continue
            otherwise = f"{value} but {found or 'nothing'}"
            said.append(str(value) if found == value else otherwise)
    if len(shown) > len(wanted) and dimension in (None, "object"):
        said.append("extra")
    return " ".join(said)
