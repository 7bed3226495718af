"""`alanything plan CONFIG --topology T`."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from alanything_jax.cli import recipe
from alanything_jax.experiment import Experiment
from alanything_jax.pipelines.llf import LLF
from alanything_jax.planning import fit, page, plan, topology

USAGE = """usage: alanything plan CONFIG --topology T [--slices N] [--fit] [--json FILE]
                       [--html FILE] [--dotted.field VALUE]...

Compiles the recipe's real train step with the TPU compiler, for chips that need not be
here: memory per chip, estimated step time and MFU, collectives. Of an LLF recipe, one
after another: base, critic, align, each into a file of its own (FILE-align.json).

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
    small = "--tiny" in argv
    # Chips of this machine, if any, are left alone: only the compiler is needed.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    logging.getLogger("jax").setLevel(logging.ERROR)
    fits, found = True, ()
    for stage, experiment in trainings(call.experiment).items():
        if small and not experiment.compute.mesh:
            # A tiny recipe is for one device, and a plan may be of many.
            compute = dataclasses.replace(experiment.compute, mesh=("fsdp=-1",))
            experiment = dataclasses.replace(experiment, compute=compute)
        if experiment.rollout:
            print("of what learns; sampling, between the steps, is not in a plan")
        where = (taken["--topology"], int(taken["--slices"] or 1))
        if search:
            result, found = fit.fit(experiment, *where)
        else:
            result = plan.plan(experiment, *where)
        options = [*argv[1:], *found]
        if stage:
            name = f"{call.experiment.name}, {stage}"
            result = dataclasses.replace(result, recipe=name)
        _show(result, options, taken["--json"], taken["--html"], stage)
        fits &= result.fits
    if not fits:
        return 1
    accelerator = topology.accelerator(taken["--topology"])
    # What `--fit` found is of a training; a stage's fields have longer names.
    whole = isinstance(call.experiment, LLF)
    words = ["llf", *argv] if whole else ["train", *argv, *found]
    print(
        f"next: ACCELERATOR={accelerator} bash tpu_scripts/create.sh, then on it "
        f"alanything {' '.join(words)}"
    )
    return 0


def trainings(given: Experiment | LLF) -> dict[str, Experiment]:
    """What trains, by the stage's name; "" where there is but one."""
    if not isinstance(given, LLF):
        return {"": given}
    model = (given.base or given.align).model
    return {
        stage: dataclasses.replace(each, model=model)
        for stage in ("base", "critic", "align")
        if isinstance(each := getattr(given, stage), Experiment)
    }


def _show(result, options, to_json, to_html, stage):
    """Print a plan and what to change; write its files."""
    figures = result.to_json() | {"options": options}
    Console(soft_wrap=True).print(page.table(figures))
    for given, text in (
        (to_json, json.dumps(figures, indent=1)),
        (to_html, page.page(figures)),
    ):
        if given:
            path = Path(given)
            path = path.with_stem(f"{path.stem}-{stage}") if stage else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if not result.fits:
        print("it does not fit. What to change, the cheapest first:")
        print("\n".join(f"  {line}" for line in result.advice))
        print("or let the search do it: --fit")
