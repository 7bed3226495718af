"""`alanything llf CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alanything_jax import llf
from alanything_jax.cli import recipe


def main(argv: Sequence[str]) -> int:
    """Run a recipe's rounds, or go on where its run directory stopped."""
    call = recipe.parse("llf", argv, "configs/llf_playground.py")
    run = Path(call.run_dir or Path("runs") / call.experiment.name)
    result = llf(call.experiment, run)
    print(f"wrote {result.policy} and {run / 'yield.json'}")
    print(f"next: alanything verify {result.policy}")
    return 0
