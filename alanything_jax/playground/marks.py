"""What the oracle notes down: a score per thing looked at, and words for what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alanything_jax.playground.lexicon import NUMBERS


@dataclasses.dataclass(frozen=True)
class Mark:
    """One thing looked at.

    Attributes:
      dimension: one of `lexicon.DIMENSIONS`.
      score: 0 .. 1. fault: what is wrong, in the playground's words; "" at score 1.
    """

    dimension: str
    score: float
    fault: str = ""


def mark(dimension: str, score: float, fault: str) -> Mark:
    """A mark whose fault is kept only where something is wrong."""
    score = min(1.0, max(0.0, float(score)))
    return Mark(dimension, score, "" if score >= 1 else fault)


def by_dimension(marks: Sequence[Mark]) -> dict[str, float]:
    """Mean score of each dimension that has a mark."""
    names = dict.fromkeys(m.dimension for m in marks)
    return {
        name: float(np.mean([m.score for m in marks if m.dimension == name]))
        for name in names
    }


def word(number: int) -> str:
    """A count in words."""
    return NUMBERS[number - 1] if 1 <= number <= len(NUMBERS) else "many"


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
