"""`alanything demo`: the whole path on a real model, in one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table
import tyro

from alanything_jax.pipelines.demo import demo


def run(
    run_dir: Path = Path("runs/demo"), tiny: bool = False, real: bool = True
) -> Path:
    """Align SmolLM2-135M-Instruct by DPO on real preference pairs.

    Args:
      run_dir: where everything goes.
      tiny: a random model and generated pairs instead: a minute, no download.
      real: real weights and pairs; the only kind of demo so far.
    """
    del real
    report = demo(run_dir, tiny=tiny)
    table = rich.table.Table("before", "after", show_lines=True)
    for row in report["answers"]:
        table.add_row(f"[bold]{row['prompt']}[/]\n\n{row['base']}", row["aligned"])
    rich.console.Console().print(table)
    return run_dir


def main(argv: Sequence[str]) -> int:
    """Parse, run, say where the model is and how to talk to it."""
    out = tyro.cli(run, prog="alanything demo", args=list(argv))
    print(f"report: {out / 'report.json'}")
    print(f"talk to it: alanything chat --model {out / 'export'}")
    print(f"check it:   alanything verify {out / 'export'}")
    print(f"exported model: {out / 'export'}")
    return 0
