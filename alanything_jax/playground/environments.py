"""Two small environments for rollouts of several turns: one in words, one in media.

They fit `generation.environment.Environment`: pure functions of frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from alanything_jax.data import views
from alanything_jax.playground import oracle
from alanything_jax.schema import Example, Message, Part, Response


@dataclasses.dataclass(frozen=True)
class Guess:
    """Find a number by hints; the reward is one over the number of turns that it took.

        record {"number": 37}:   "50" -> "lower"   "25" -> "higher"   "37" -> over, 1/3

    Attributes:
      lowest, highest: where the number is; told to an answer without a number.
    """

    lowest: int = 1
    highest: int = 100

    def reset(
        self, prompt: Sequence[Message], record: Mapping[str, Any]
    ) -> tuple[int, int]:
        """The number, and turns so far.

        Raises ValueError: the record has no such number.
        """
        del prompt
        number = record.get("number")
        if not isinstance(number, int) or not self.lowest <= number <= self.highest:
            raise ValueError(
                f"record {record.get('id')!r} has number={number!r}; give a whole one from "
                f"{self.lowest} to {self.highest}."
            )
        return number, 0

    def step(self, state: tuple[int, int], said: Message):
        """The first number in the answer counts."""
        number, turns = state[0], state[1] + 1
        found = re.search(r"\d{1,9}", said.text)
        guess = int(found[0]) if found else None
        if guess == number:
            return (number, turns), None, 1.0 / turns
        hint = f"say a number from {self.lowest} to {self.highest}"
        if guess is not None:
            hint = "higher" if guess < number else "lower"
        return (number, turns), (_user(hint),), 0.0


@dataclasses.dataclass(frozen=True)
class Redraw:
    """Draw (or play, or animate), hear the oracle's critique, and draw again.

    Rewards sum to the last answer's score: each turn's is by how much it is better than the
    one before. It is over when nothing is wrong, or after `attempts`.

    Attributes:
      templates: folder of `data/templates` whose words ask for another answer.
    """

    attempts: int = 3
    templates: str = "playground"

    def reset(
        self, prompt: Sequence[Message], record: Mapping[str, Any]
    ) -> tuple[Example, float, int]:
        """Prompt and goal, the last score, and turns so far.

        Raises ValueError: the record is none of the playground's.
        """
        example = Example(str(record.get("id", "")), tuple(prompt), extra=record)
        oracle.goal_of(example)
        return example, 0.0, 0

    def step(self, state: tuple[Example, float, int], said: Message):
        """What the oracle says of the answer."""
        example, before, turns = state
        verdict = oracle.score(example, Response((said,)))
        after = example, verdict.overall, turns + 1
        gain = verdict.overall - before
        if verdict.good or turns + 1 >= self.attempts:
            return after, None, gain
        words = string.Template(views.templates(self.templates).refine)
        asked = words.safe_substitute(critique=oracle.critique(verdict))
        return after, (_user(asked),), gain


def _user(text):
    return Message("user", (Part("text", text=text),))
