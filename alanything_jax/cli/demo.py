"""`alanything demo`: the whole path in one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table
import tyro

from alanything_jax.pipelines.demo import demo
from alanything_jax.pipelines.demo_real import demo as demo_real


def run(
    run_dir: Path = Path("runs/demo"), tiny: bool = False, real: bool = False
) -> int:
    """Teach a small any-to-any model from language feedback, and show what it gained.

    Args:
      run_dir: where everything goes; the same command goes on where it stopped.
      tiny: smaller still, to see that it works.
      real: instead, align SmolLM2-135M-Instruct by DPO on real preference pairs.
    """
    if real:
        report = demo_real(run_dir, tiny=tiny)
        table = rich.table.Table("before", "after", show_lines=True)
        for row in report["answers"]:
            table.add_row(f"[bold]{row['prompt']}[/]\n\n{row['base']}", row["aligned"])
        rich.console.Console().print(table)
        print(f"report: {run_dir / 'report.json'}")
        print(f"talk to it: alanything chat --model {run_dir / 'export'}")
    else:
        demo(run_dir, tiny=tiny)
        print(f"look at it: {run_dir / 'report.html'} (figures: report.json beside it)")
        print(
            f"ask it:     alanything generate --model {run_dir / 'export'} "
            '--prompt "draw two red circles left and one blue square top"'
        )
    print(f"check it:   alanything verify {run_dir / 'export'}")
    print(f"exported model: {run_dir / 'export'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Parse and run."""
    return tyro.cli(run, prog="alanything demo", args=list(argv))
