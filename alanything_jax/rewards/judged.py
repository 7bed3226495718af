"""A judge's grade as a reward: asked of any OpenAI-compatible server, in words."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from alanything_jax.rewards.combine import Row
from alanything_jax.rewards.judge import Endpoint, Question
from alanything_jax.schema import Message, Part

ASK = (
    "How good is the last answer to what was asked of it? First say in a sentence what is "
    "right and wrong. Then give a grade from {low:g} (useless) to {high:g} (nothing to "
    "improve) as <score>GRADE</score>."
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A grade, as a `batched` term of `combine.Rewards`.

    Attributes:
      url, model, api_key_env, temperature, max_tokens, budget_requests: as `Endpoint`'s.
      cache_dir: of its answers; "" = none are kept.
      ask: what it is asked behind prompt and answer; low, high: the grades it may give.
    """

    url: str
    model: str
    api_key_env: str = ""
    temperature: float = 0.0
    max_tokens: int = 512
    budget_requests: int | None = None
    cache_dir: str = ""
    ask: str = ASK
    low: float = 0.0
    high: float = 10.0

    def __call__(self, rows: Sequence[Row]) -> list[float]:
        """One grade a row, brought to 0 .. 1; NaN, which a rollout counts as an error,
        where the judge failed, or gave no grade within its bounds."""
        words = self.ask.format(low=self.low, high=self.high)
        asked = Message("user", (Part("text", text=words),))
        questions = [
            Question(str(n), (*prompt, *response.messages, asked))
            for n, (prompt, response, _) in enumerate(rows)
        ]
        replies = _endpoint(self)(questions)
        return [self._grade(replies[str(n)].text) for n in range(len(rows))]

    def _grade(self, text):
        found = re.findall(r"<score>\s*(-?\d+(?:\.\d+)?)\s*</score>", text or "")
        if not found or not self.low <= float(found[-1]) <= self.high:
            return float("nan")
        return (float(found[-1]) - self.low) / (self.high - self.low)


@functools.lru_cache(maxsize=8)
def _endpoint(judged):
    """One for all calls: its budget is of the whole run."""
    return Endpoint(
        judged.url,
        judged.model,
        judged.api_key_env,
        judged.temperature,
        judged.max_tokens,
        cache_dir=Path(judged.cache_dir) if judged.cache_dir else None,
        budget_requests=judged.budget_requests,
    )
