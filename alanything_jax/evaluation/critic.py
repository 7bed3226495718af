"""How well a critic judges: its verdicts against the oracle's, its faults against true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.data import views
from alanything_jax.evaluation.agreement import bootstrap, cohen_kappa
from alanything_jax.generation.generate import generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.playground import oracle
from alanything_jax.playground.lexicon import DIMENSIONS
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Judged:
    """One critique beside the oracle's verdict.

    Attributes:
      said: good, not good, or None where no verdict was found. true: good or not.
      exact: the critique is the oracle's word for word.
    """

    text: str
    said: bool | None
    true: bool
    exact: bool
    task: str


def judge(
    bundle: hub.Bundle,
    examples: Sequence[Example],
    words: views.Templates,
    dimension: str | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 256,
) -> list[Judged]:
    """Critiques of each example's first response, overall or of one dimension."""
    asked = [views.ask_critique(e, e.responses[0], words, dimension) for e in examples]
    answers = generate(
        bundle,
        asked,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(0.0),
        batch_size=batch_size,
    )
    out = []
    for example, (answer,) in zip(examples, answers, strict=True):
        verdict = oracle.score(example, example.responses[0])
        true = verdict.good if dimension is None else verdict.dimensions[dimension] >= 1
        text = answer.text.strip()
        out.append(
            Judged(
                text,
                oracle.says_good(text, dimension),
                bool(true),
                text == oracle.critique(verdict, dimension),
                oracle.goal_of(example)["task"],
            )
        )
    return out


def figures(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """Accuracy and kappa of verdicts, precision and recall of "bad", exact critiques.

    Each `[value, low, high]` with a 95% bootstrap interval; no verdict counts as wrong.
    """
    true = np.array([not item.true for item in judged])
    said = np.array(
        [not item.true if item.said is None else item.said for item in judged]
    )
    bad = np.array([item.said is False for item in judged])
    exact = np.array([item.exact for item in judged])
    agree = said == ~true

    def share(part, whole):
        return float(part.sum() / whole.sum()) if whole.sum() else float("nan")

    found = {
        "verdict_accuracy": bootstrap(np.mean, agree, samples=500),
        "kappa": bootstrap(cohen_kappa, ~said, true, samples=200),
        "precision": bootstrap(lambda b, t: share(b & t, b), bad, true, samples=500),
        "recall": bootstrap(lambda b, t: share(b & t, t), bad, true, samples=500),
        "exact": bootstrap(np.mean, exact, samples=500),
    }
    return {
        name: [round(float(x), 4) for x in (i.value, i.low, i.high)]
        for name, i in found.items()
    }


def report(
    bundle: hub.Bundle, examples: Sequence[Example], words: views.Templates
) -> dict[str, Any]:
    """Overall figures, and kappa with accuracy per dimension and per task."""
    overall = judge(bundle, examples, words)
    out: dict[str, Any] = figures(overall)
    out["dimensions"] = {
        name: figures(judge(bundle, examples, words, name)) for name in DIMENSIONS
    }
    tasks = dict.fromkeys(item.task for item in overall)
    out["modalities"] = {
        task: figures([item for item in overall if item.task == task]) for task in tasks
    }
    return out
