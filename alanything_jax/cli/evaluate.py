"""`alanything evaluate CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alanything_jax import evaluate
from alanything_jax.cli import recipe
from alanything_jax.experiment import Experiment
from alanything_jax.pipelines import arena_report, eval_anything
from alanything_jax.pipelines.arena import Arena
from alanything_jax.pipelines.eval_anything import AMG, AMU
from alanything_jax.pipelines.evaluate import describe


def main(argv: Sequence[str]) -> int:
    """Whatever the recipe measures: held-out accuracy, Eval-Anything, an arena."""
    call = recipe.parse("evaluate", argv)
    run = Path(call.run_dir or Path("runs") / call.experiment.name)
    report = evaluate(call.experiment, run)
    if isinstance(call.experiment, Arena):
        lines = arena_report.describe(report)
        lines.append(f"wrote {run}/ (report.json, battles.jsonl, vote.html)")
        lines.append(f"next: open {run / 'vote.html'} and vote on the same battles")
    elif isinstance(call.experiment, AMU | AMG):
        grades = ", ".join(map(str, sorted(run.glob("grades*.jsonl"))))
        other = "amg" if isinstance(call.experiment, AMU) else "amu"
        lines = eval_anything.describe(report)
        lines.append(f"wrote {run / 'report.json'}; the judge's words: {grades}")
        lines.append(f"next: read those, or alanything evaluate configs/{other}.py")
    elif isinstance(call.experiment, Experiment):
        lines = [*describe(report), f"wrote {run / 'evaluation.json'}"]
        train = f"alanything train CONFIG --run-dir {run}"
        export = f"next: alanything export {run} {run / 'export'}"
        none = f"no checkpoint in {run} yet; next: {train}"
        lines.append(none if report["aligned"] is None else export)
    else:
        made = sorted(path.name for path in run.iterdir() if path.is_file())
        lines = [f"wrote {run}/ ({', '.join(made)})"]
    print("\n".join(lines))
    return 0 if report.get("complete", True) else 1
