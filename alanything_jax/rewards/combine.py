"""Several rewards as one: weights, clipping, whitening; and what happens when one fails."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from alanything_jax.rewards.rules import Reward
from alanything_jax.schema import Message, Response

Row = tuple[Sequence[Message], Response, Mapping[str, Any]]
BatchedReward = Callable[[Sequence[Row]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Term:
    """One reward in a sum: weight times its score, which is first held to `clip`.

    A `batched` reward is called once, with all rows, and gives all their scores.
    """

    name: str
    reward: Reward | BatchedReward
    weight: float = 1.0
    clip: tuple[float, float] = (-np.inf, np.inf)
    batched: bool = False


@dataclasses.dataclass(frozen=True)
class Rewards:
    """A sum of terms; of none it is 0, for algorithms that read no reward.

    Attributes:
      on_error: what a score that fails, times out or is not finite means: the row has no
        reward ("drop": NaN, which a loop leaves out), this term has `floor`, or stop.
      seconds: for one score.
      whiten: the batch's sums are brought to mean 0 and variance 1.
      workers: scores made at a time, by threads.
    """

    terms: tuple[Term, ...] = ()
    on_error: Literal["drop", "floor", "raise"] = "drop"
    floor: float = 0.0
    seconds: float = 30.0
    whiten: bool = False
    workers: int = 4

    def __post_init__(self):
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards {names}: give each its own name.")


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a batch of n rows scored.

    Attributes:
      total: [n] float32, NaN where a row has no reward.
      terms: name -> [n] float32, before weights; NaN where it failed.
      errors: (name, kind of error) -> how often; `first`: the first one's words.
    """

    total: np.ndarray
    terms: dict[str, np.ndarray]
    errors: collections.Counter
    first: str = ""


def score(rewards: Rewards, rows: Sequence[Row]) -> Scored:
    """Every row's reward.

    A score that runs over its time is left to itself: Python cannot stop a thread. What it
    holds is freed when it ends.

    Raises whatever a reward raised, or TimeoutError, with on_error="raise".
    """
    errors: collections.Counter = collections.Counter()
    words, terms = [], {}
    for term in rewards.terms:
        if term.batched:
            seconds = rewards.seconds * len(rows)
            calls = [functools.partial(term.reward, rows)]
        else:
            seconds = rewards.seconds
            calls = [functools.partial(term.reward, *row) for row in rows]
        made = _outcomes(calls, seconds, rewards.workers)
        values = np.full(len(rows), np.nan, np.float32)
        for n in range(len(rows)):
            try:
                value = made[0 if term.batched else n]
                if isinstance(value, Exception):
                    raise value
                value = float(value[n] if term.batched else value)
                if not np.isfinite(value):
                    raise ValueError(f"{value} is no score")
                values[n] = np.clip(value, *term.clip)
            # A reward is code of the user's: whatever it raises is counted here.
            except Exception as error:
                if rewards.on_error == "raise":
                    raise
                errors[term.name, type(error).__name__] += 1
                words.append(f"{term.name}, row {n}: {type(error).__name__}: {error}")
        terms[term.name] = values
    filled = {
        name: np.where(np.isnan(v), rewards.floor, v)
        if rewards.on_error == "floor"
        else v
        for name, v in terms.items()
    }
    total = np.zeros(len(rows), np.float32)
    for term in rewards.terms:
        if term.weight:  # One that only looks on takes no row out by failing.
            total += term.weight * filled[term.name]
    if rewards.whiten and np.sum(np.isfinite(total)) > 1:
        total = (total - np.nanmean(total)) / max(float(np.nanstd(total)), 1e-6)
    return Scored(total, terms, errors, words[0] if words else "")


def _outcomes(calls, seconds, workers):
    """What each call returned or raised; TimeoutError of one that took over `seconds`.

    Its thread then is left to itself, and another takes its place.
    """
    waiting = collections.deque(range(len(calls)))
    began: dict[int, float] = {}
    found: dict[int, Any] = {}
    news = threading.Condition()

    def work():
        while True:
            with news:
                if not waiting:
                    return
                n = waiting.popleft()
                began[n] = time.monotonic()
            try:
                value = calls[n]()
            except Exception as error:
                value = error
            with news:
                found.setdefault(n, value)
                news.notify()

    def hire(count):
        for _ in range(count):
            # A daemon: one that hangs does not keep the program from ending.
            threading.Thread(target=work, daemon=True).start()

    hire(min(workers, len(calls)))
    with news:
        while len(found) < len(calls):
            now = time.monotonic()
            ends = {n: t + seconds for n, t in began.items() if n not in found}
            late = [n for n, end in ends.items() if end <= now]
            for n in late:
                found[n] = TimeoutError(f"no score within {seconds:g} s")
            hire(min(len(late), len(waiting)))
            if not late:
                news.wait(min(ends.values(), default=now + 1) - now)
    return [found[n] for n in range(len(calls))]
