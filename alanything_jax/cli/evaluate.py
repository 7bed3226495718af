"""`alanything evaluate CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alanything_jax import evaluate
from alanything_jax.cli import recipe
from alanything_jax.experiment import Experiment
from alanything_jax.pipelines import arena_report
from alanything_jax.pipelines.arena import Arena
from alanything_jax.pipelines.evaluate import describe


def main(argv: Sequence[str]) -> int:
    """Whatever the recipe measures: held-out accuracy, the playground, an arena."""
    call = recipe.parse("evaluate", argv)
    run = Path(call.run_dir or Path("runs") / call.experiment.name)
    report = evaluate(call.experiment, run)
    if isinstance(call.experiment, Arena):
        print("\n".join(arena_report.describe(report)))
        print(f"wrote {run}/ (report.json, battles.jsonl, vote.html)")
        print(f"next: open {run / 'vote.html'} and vote on the same battles yourself")
        return 0 if report["complete"] else 1
    if not isinstance(call.experiment, Experiment):
        print(f"wrote {run / 'report.json'}")
        return 0
    print("\n".join(describe(report)))
    print(f"wrote {run / 'evaluation.json'}")
    if report["aligned"] is None:
        print(
            f"no checkpoint in {run} yet; next: alanything train CONFIG --run-dir {run}"
        )
    else:
        print(f"next: alanything export {run} {run / 'export'}")
    return 0
