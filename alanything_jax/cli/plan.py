"""`alanything plan CONFIG --topology T`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from alanything_jax.cli import recipe
from alanything_jax.planning import fit, page, plan, topology

USAGE = """usage: alanything plan CONFIG --topology T [--slices N] [--fit] [--json FILE]
                       [--html FILE] [--dotted.field VALUE]...

Compiles the recipe's real train step with the TPU compiler, for chips that need not be
here: memory per chip, estimated step time and MFU, collectives.

  --topology  GENERATION:SHAPE, such as v5p:4x4x4, v6e:4x4, v5e:1x1
  --slices    so many of them, joined by the data centre's network
  --fit       try cheaper settings until one fits
  --json      write the figures; --html a page of them"""


def main(argv: Sequence[str]) -> int:
    """Plan, print, write; the exit code is 1 where the recipe does not fit."""
    argv = list(argv)
    taken = {
        flag: recipe.take(argv, flag)
        for flag in ("--topology", "--slices", "--json", "--html")
    }
    if not argv or argv[0].startswith("-") or not taken["--topology"]:
        print(USAGE)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    search = "--fit" in argv
    if search:
        argv.remove("--fit")
    if not (taken["--slices"] or "1").isdigit():
        raise ValueError(f"--slices {taken['--slices']}: give a number.")
    call = recipe.parse("plan", argv, "configs/dpo_llama3_8b.py")
    # Chips of this machine, if any, are left alone: only the compiler is needed.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    logging.getLogger("jax").setLevel(logging.ERROR)
    make = fit.fit if search else plan.plan
    result = make(call.experiment, taken["--topology"], int(taken["--slices"] or 1))
    figures = result.to_json() | {"options": argv[1:]}
    Console(soft_wrap=True).print(page.table(figures))
    for flag, text in (
        ("--json", json.dumps(figures, indent=1)),
        ("--html", page.page(figures)),
    ):
        if taken[flag]:
            Path(taken[flag]).parent.mkdir(parents=True, exist_ok=True)
            Path(taken[flag]).write_text(text, encoding="utf-8")
            print(f"wrote {taken[flag]}")
    if not result.fits:
        print("it does not fit. What to change, the cheapest first:")
        print("\n".join(f"  {line}" for line in result.advice))
        print("or let the search do it: --fit")
        return 1
    accelerator = topology.accelerator(taken["--topology"])
    print(
        f"next: ACCELERATOR={accelerator} bash tpu_scripts/create.sh, then on it "
        f"alanything train {' '.join(argv)}"
    )
    return 0
