"""The search of `--fit`: cheaper settings of a recipe until one fits a chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from alanything_jax.experiment import Experiment
from alanything_jax.planning.plan import Plan, Say, plan


def candidates(experiment: Experiment) -> Iterator[tuple[Experiment, str]]:
    """The recipe, then with less kept, then with fewer rows at a time, then sharded more.

    In the order of what they cost in speed; what is learnt is the same in all.
    """
    change, compute = dataclasses.replace, experiment.compute
    yield experiment, "as it is"
    compute = change(compute, remat="full")
    if compute != experiment.compute:
        yield change(experiment, compute=compute), "--compute.remat full"
    axes = dict(item.split("=") for item in compute.mesh)
    if int(axes.get("replica", 1)) > 1:
        compute = change(compute, mesh=("fsdp=-1",))
        note = "--compute.remat full --compute.mesh fsdp=-1"
        yield change(experiment, compute=compute), note
    rows = compute.rows_per_microbatch
    while rows and rows % 2 == 0:
        rows //= 2
        compute = change(compute, rows_per_microbatch=rows)
        note = f"--compute.remat full --compute.rows_per_microbatch {rows}"
        yield change(experiment, compute=compute), note
    model = change(experiment.model, param_dtype="bfloat16")
    note = f"--compute.remat full --compute.rows_per_microbatch {rows}"
    note += " --model.param_dtype bfloat16"
    yield change(experiment, compute=compute, model=model), note


def fit(experiment: Experiment, name: str, slices: int = 1, say: Say = print) -> Plan:
    """The first candidate that fits, or the last one tried; says each.

    Raises ValueError: as `plan`, of the recipe as it is; a candidate that cannot be laid
    out on the mesh is passed over.
    """
    result = None
    for candidate, note in candidates(experiment):
        try:
            result = plan(candidate, name, slices, say)
        except ValueError as error:
            if result is None:
                raise
            say(f"{note}: {error}")
            continue
        used = sum(result.hbm.values())
        verdict = "fits" if result.fits else "does not fit"
        say(f"{note}: {used:.1f} of {result.hbm_limit_gib} GiB, {verdict}")
        if result.fits:
            break
    return result
