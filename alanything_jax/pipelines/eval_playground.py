"""Eval-Anything's playground edition: any model of ours, scored offline by the oracle.

Understanding is i2t, a2t, v2t; generation is t2i, t2a, t2v and the edit; selection is
`choose`, where the kind of output must be found. Prompts are of combinations that no
training prompt has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.evaluation import playground as scores
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.training.run_dir import write_json

PARTS: Mapping[str, tuple[str, ...]] = {
    "understanding": ("i2t", "a2t", "v2t"),
    "generation": ("t2i", "t2a", "t2v", "ti2ti"),
    "selection": ("choose",),
}


@dataclasses.dataclass(frozen=True)
class PlaygroundEval:
    """Which models, on how many prompts.

    Attributes:
      models: (name, HF directory) pairs; the one named "base" is what gains are over.
      split: "test", or "tune" for choosing settings.
      temperatures: of the answers.
    """

    models: tuple[tuple[str, str], ...]
    name: str = "eval_playground"
    prompts: int = 1024
    split: str = "test"
    seed: int = 2026
    temperatures: tuple[float, ...] = (1.0, 0.0)
    max_new_tokens: int = 48

    def __post_init__(self):
        if "base" not in dict(self.models):
            raise ValueError(
                f"the models are {[n for n, _ in self.models]}: name one of them "
                '"base", over which gains are taken.'
            )

    def tiny(self) -> PlaygroundEval:
        """The same on few prompts, small random models in the place of those on disk."""
        models = tuple((name, "playground:48x1") for name, _ in self.models)
        return dataclasses.replace(self, models=models, prompts=32, max_new_tokens=24)


def evaluate_playground(
    recipe: PlaygroundEval,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score every model; the report is also `<run_dir>/report.json`.

    Returns:
      Per temperature ("T1.0"): what `evaluation.playground.compare` gives, and per model
      but the base `relative_gain`: the mean over tasks of (model - base) / base, with a
      95% bootstrap interval over prompts.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    run.mkdir(parents=True, exist_ok=True)
    bundles = {name: load_model(ModelSource(path)) for name, path in recipe.models}
    prompts = scores.test_prompts(recipe.prompts, recipe.seed, recipe.split)
    report: dict[str, Any] = {"models": dict(recipe.models)}
    for temperature in recipe.temperatures:
        arms = {
            name: scores.measure(
                bundle,
                prompts,
                temperature=temperature,
                seed=recipe.seed,
                max_new_tokens=recipe.max_new_tokens,
            )
            for name, bundle in bundles.items()
        }
        found = scores.compare(arms)
        found["relative_gain"] = {
            name: relative_gain(arms["base"], arm)
            for name, arm in arms.items()
            if name != "base"
        }
        found["parts"] = {part: _part(arms, part) for part in PARTS}
        report[f"T{temperature}"] = found
        for name, (value, low, high) in found["relative_gain"].items():
            say(
                f"T={temperature} {name}: {100 * value:+.1f}% over the base "
                f"[{100 * low:+.1f}, {100 * high:+.1f}], mean over modality pairs"
            )
    write_json(run / "report.json", report)
    return report


def _part(arms, part):
    where = np.isin(arms["base"].tasks, PARTS[part])
    return {name: scores.interval(arm.values[where]) for name, arm in arms.items()}


def relative_gain(
    base: scores.Scores, arm: scores.Scores, samples: int = 1000, seed: int = 0
) -> list[float]:
    """[value, low, high] of the mean over tasks of (arm - base) / base, paired prompts."""
    rng = np.random.default_rng(seed)
    names = np.array(base.tasks)
    groups = [np.flatnonzero(names == task) for task in dict.fromkeys(base.tasks)]

    def gain(chosen):
        pairs = [(base.values[c].mean(), arm.values[c].mean()) for c in chosen]
        return float(np.mean([(new - old) / max(old, 1e-9) for old, new in pairs]))

    drawn = [gain([rng.choice(g, len(g)) for g in groups]) for _ in range(samples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [round(float(x), 6) for x in (gain(groups), low, high)]
