"""A model's score on new playground prompts, by the oracle; with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.evaluation.agreement import bootstrap
from alanything_jax.generation.generate import Answer, generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.playground import oracle, tasks
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Scores:
    """Oracle's scores of one answer a prompt.

    Attributes:
      values: [n] 0 .. 1. tasks: [n] names. answers: the n answers.
    """

    values: np.ndarray
    tasks: tuple[str, ...]
    answers: tuple[Answer, ...]


def measure(
    bundle: hub.Bundle,
    prompts: Sequence[Example],
    *,
    temperature: float,
    seed: int = 0,
    max_new_tokens: int = 48,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Answer every prompt once and score the answers; one that never ends scores 0."""
    answers = [
        some[0]
        for some in generate(
            bundle,
            [example.prompt for example in prompts],
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature),
            batch_size=batch_size,
            seed=seed,
            on_batch=on_batch,
        )
    ]
    values = [
        oracle.score(example, answer.response).overall * answer.finished
        for example, answer in zip(prompts, answers, strict=True)
    ]
    names = tuple(oracle.goal_of(example)["task"] for example in prompts)
    return Scores(np.array(values, float), names, tuple(answers))


def test_prompts(count: int, seed: int = 0, split: str = "test") -> list[Example]:
    """Prompts of combinations that no training prompt has."""
    return tasks.prompts(split, count, seed)


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """Mean and 95% bootstrap interval over prompts: [mean, low, high]."""
    found = bootstrap(np.mean, values, samples=1000, seed=seed)
    return [round(float(x), 6) for x in (found.value, found.low, found.high)]


def compare(arms: dict[str, Scores]) -> dict[str, Any]:
    """Figures of several models on the same prompts; the arm "base" is what gains are over.

    Returns:
      `{"base": [mean, low, high], arm: ..., "gain": of "aligned", "<arm>_gain": of the
      others, "modalities": {task: the same}}`; gains are paired by prompt.
    """
    names = arms["base"].tasks
    report = _figures(arms, np.ones(len(names), bool))
    report["modalities"] = {
        task: _figures(arms, np.array([name == task for name in names]))
        for task in dict.fromkeys(names)
    }
    return report


def _figures(arms, where):
    out = {name: interval(scores.values[where]) for name, scores in arms.items()}
    for name, scores in arms.items():
        if name != "base":
            gain = interval((scores.values - arms["base"].values)[where])
            out["gain" if name == "aligned" else f"{name}_gain"] = gain
    return out
