"""`alanything verify OUT [--against HF_DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table
import tyro

from alanything_jax.hub.verify import verify


def run(directory: tyro.conf.Positional[Path], against: Path | None = None) -> int:
    """Reload an exported directory and compare it with what was written.

    Args:
      directory: what `alanything export` wrote.
      against: a base model's directory whose layout it must have.
    """
    checks = verify(directory, against)
    table = rich.table.Table("check", "result", "detail")
    words = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]not done[/]"}
    for check in checks:
        table.add_row(check.name, words[check.passed], check.detail)
    rich.console.Console().print(table)
    failed = [check.name for check in checks if check.passed is False]
    if failed:
        print(f"{directory} is not sound: {', '.join(failed)}")
        return 1
    print(f"{directory} is sound\nnext: alanything chat --model {directory}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Parse and verify."""
    return tyro.cli(run, prog="alanything verify", args=list(argv))
