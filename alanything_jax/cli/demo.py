"""`alanything demo`: the whole path in one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table
import tyro

from alanything_jax.pipelines.demo import demo as demo_playground
from alanything_jax.pipelines.demo_real import demo as demo_real


def run(run_dir: Path | None = None, tiny: bool = False, real: bool = False) -> int:
    """Teach a small any-to-any model from nothing by language feedback; write a page.

    Args:
      run_dir: where everything goes (runs/demo, or runs/demo-real); the same command
        goes on where it stopped.
      tiny: the same on a smaller model and fewer prompts, to see that it works.
      real: instead, align SmolLM2-135M-Instruct by DPO on real preference pairs; this
        downloads the model once.
    """
    out = run_dir or Path("runs/demo-real" if real else "runs/demo")
    if real:
        report = demo_real(out, tiny=tiny)
        table = rich.table.Table("before", "after", show_lines=True)
        for row in report["answers"]:
            table.add_row(f"[bold]{row['prompt']}[/]\n\n{row['base']}", row["aligned"])
        rich.console.Console().print(table)
        print(f"report: {out / 'report.json'}")
        print(f"talk to it: alanything chat --model {out / 'export'}")
    else:
        demo_playground(out, tiny=tiny)
        print(f"look at it: {out / 'report.html'} (figures: report.json beside it)")
        print(
            f"ask it:     alanything generate --model {out / 'export'} "
            '--prompt "draw two red circles left and one blue square top"'
        )
    print(f"check it:   alanything verify {out / 'export'}")
    print(f"exported model: {out / 'export'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Parse and run."""
    return tyro.cli(run, prog="alanything demo", args=list(argv))
