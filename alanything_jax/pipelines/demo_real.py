"""`demo --real`: align a real chat model on real preference pairs, compare, export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax import experiment as recipes
from alanything_jax.generation.generate import generate
from alanything_jax.pipelines.demo import recipe
from alanything_jax.pipelines.evaluate import describe, evaluate
from alanything_jax.pipelines.export import export
from alanything_jax.training.loop import train
from alanything_jax.training.restore import load_run
from alanything_jax.training.run_dir import RunDir, write_json

PROMPTS = (
    "Give three tips for staying healthy while working at a desk.",
    "Explain why the sky is blue to a ten-year-old.",
)


def demo(
    run_dir: str | Path = "runs/demo-real",
    *,
    tiny: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, measure before and after, show two answers side by side, export.

    Args:
      run_dir: where everything goes; the same command goes on where it stopped.
      tiny: the same on a random model, in a minute, without a download.

    Returns:
      The report, also at `<run_dir>/report.json`.
    """
    experiment = dataclasses.replace(recipe("configs/dpo_smollm2.py"), name="demo")
    if tiny:
        experiment = recipes.tiny(experiment)
    run = RunDir(Path(run_dir))
    say("1/4 training (interrupt it any time: the same command goes on from there)")
    train(experiment, run.path, say)
    say("2/4 held-out preference accuracy, before and after")
    report = evaluate(experiment, run.path, say)
    report["first_and_last_step"] = _ends(run)
    for line in describe(report):
        say("  " + line)
    say("3/4 two answers, side by side")
    restored = load_run(run.path)
    prompts = list(PROMPTS) if not tiny else ["say k", "say z"]
    size = 12 if tiny else 160
    base = dataclasses.replace(restored, adapter=None).merged()
    answers = [
        generate(bundle, prompts, max_new_tokens=size)
        for bundle in (base, restored.merged())
    ]
    report["answers"] = [
        {"prompt": prompt, "base": before[0].text, "aligned": after[0].text}
        for prompt, before, after in zip(prompts, *answers, strict=True)
    ]
    write_json(run.path / "report.json", report)
    say("4/4 export")
    if run.export.exists():
        say(f"{run.export} is there already; remove it to export again")
    else:
        export(run.path, run.export)
    return report


def _ends(run: RunDir) -> dict[str, dict[str, float]]:
    """Loss and training accuracy of the first and the last three steps."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [line for line in lines if line["step"] > 0]

    def mean(some):
        return {
            name: float(np.mean([line[name] for line in some]))
            for name in ("loss", "reward_accuracy")
        }

    return {"first": mean(steps[:3]), "last": mean(steps[-3:])}
