"""`alanything evaluate CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alanything_jax import evaluate
from alanything_jax.cli import recipe
from alanything_jax.pipelines.evaluate import describe


def main(argv: Sequence[str]) -> int:
    """Reward and preference accuracy on the recipe's held-out groups."""
    call = recipe.parse("evaluate", argv)
    run = Path(call.run_dir or Path("runs") / call.experiment.name)
    report = evaluate(call.experiment, run)
    print("\n".join(describe(report)))
    print(f"wrote {run / 'evaluation.json'}")
    if report["aligned"] is None:
        print(
            f"no checkpoint in {run} yet; next: alanything train CONFIG --run-dir {run}"
        )
    else:
        print(f"next: alanything export {run} {run / 'export'}")
    return 0
