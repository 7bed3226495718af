"""Held-out reward and preference accuracy of a run, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.evaluation import heldout
from alanything_jax.experiment import Experiment
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts as compiled
from alanything_jax.training.loop import num_steps
from alanything_jax.training.prepare import prepare
from alanything_jax.training.run_dir import RunDir, write_json


def evaluate(
    experiment: Experiment,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the model a run started from, and its newest checkpoint if it has one.

    Returns:
      `{"base": figures, "aligned": figures or None, "change": ...}`, also written to
      `<run_dir>/evaluation.json`. Figures are `[share, low, high]` with 95% intervals.

    Raises ValueError: the recipe holds nothing out.
    """
    run = RunDir(Path(run_dir or Path("runs") / experiment.name))
    run.path.mkdir(parents=True, exist_ok=True)
    prepared = prepare(experiment, run.path / "quarantine-evaluate.jsonl", say)
    if prepared.heldout is None:
        raise ValueError(
            "this recipe holds nothing out: set data.heldout_groups or data.heldout_path."
        )
    total = num_steps(experiment, len(prepared.train.groups))
    transformation = optimizers.make(experiment.optimizer, total, prepared.rates)
    with jax.set_mesh(prepared.mesh):
        parts = compiled.compile_parts(prepared, transformation)
        base = heldout.of_reference(prepared)
        if base is None:
            _, base = heldout.measure(prepared, parts, prepared.trainable)
        report = {"base": figures(base), "aligned": None}
        if run.checkpoints.exists():
            state = compiled.initial_state(
                prepared.trainable, prepared.shardings, prepared.mesh, transformation
            )
            with checkpoints.manager(run.checkpoints, experiment.train.keep) as saved:
                step = checkpoints.latest_step(saved)
                if step is not None:
                    state = checkpoints.restore(saved, state, step)
                    metrics, after = heldout.measure(prepared, parts, state.trainable)
                    report |= compare(base, after) | {"step": step, "metrics": metrics}
    write_json(run.path / "evaluation.json", report)
    return report


def figures(responses: heldout.Responses) -> dict[str, list[float]]:
    """Accuracy by the sum, and by the mean over tokens, each `[share, low, high]`."""
    per_token = responses.values / np.maximum(responses.tokens, 1)
    return {
        "accuracy": _triple(heldout.accuracy(responses.values)),
        "accuracy_per_token": _triple(heldout.accuracy(per_token)),
    }


def compare(base: heldout.Responses, after: heldout.Responses) -> dict[str, Any]:
    """Figures of the aligned model, its implicit rewards, and whether anything changed."""
    gained = heldout.Responses(after.values - base.values, base.tokens)
    aligned = figures(after) | {
        "implicit_reward_accuracy": _triple(heldout.accuracy(gained.values))
    }
    wins = [(v[:, :1] > v[:, 1:]).ravel() for v in (base.values, after.values)]
    p_value = heldout.mcnemar(*wins)
    return {
        "aligned": aligned,
        "change": {"p_value": p_value, "significant": p_value < 0.05},
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report in lines a person reads."""
    lines = []
    for who in ("base", "aligned"):
        for name, (share, low, high) in (report[who] or {}).items():
            title = f"{who} {name.replace('_', ' ')}"
            lines.append(f"{title:<36} {share:.3f}  [{low:.3f}, {high:.3f}]")
    if report.get("change"):
        p_value = report["change"]["p_value"]
        verdict = (
            "changed" if report["change"]["significant"] else "no significant change"
        )
        lines.append(f"accuracy: {verdict} (McNemar exact p = {p_value:.3f})")
    return lines


def _triple(share: heldout.Share) -> list[float]:
    return [round(x, 6) for x in (share.value, share.low, share.high)]
