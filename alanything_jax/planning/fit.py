"""The search of `--fit`: cheaper settings of a recipe until one fits a chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from alanything_jax.experiment import Experiment
from alanything_jax.planning.plan import Plan, Say, plan


def candidates(
    experiment: Experiment, slices: int = 1
) -> Iterator[tuple[Experiment, tuple[str, ...]]]:
    """The recipe, then with less kept, sharded more, with fewer rows at a time, in half
    the bits; each with the options that make it so.

    In the order of what they cost in speed; what is learnt is the same in all but the last.
    """
    change, options = dataclasses.replace, ()
    yield experiment, options
    compute = experiment.compute
    if compute.remat != "full":
        compute = change(compute, remat="full")
        options += ("--compute.remat", "full")
        yield change(experiment, compute=compute), options
    axes = dict(item.split("=") for item in compute.mesh)
    whole = (f"replica={slices}",) if slices > 1 else ()
    if axes.get("replica", "1") != str(slices):
        compute = change(compute, mesh=(*whole, "fsdp=-1"))
        options += ("--compute.mesh", *compute.mesh)
        yield change(experiment, compute=compute), options
    rows, fewer = compute.rows_per_microbatch, ()
    while rows and rows % 2 == 0:
        rows //= 2
        fewer = ("--compute.rows_per_microbatch", str(rows))
        compute = change(compute, rows_per_microbatch=rows)
        yield change(experiment, compute=compute), options + fewer
    options += fewer
    if experiment.model.param_dtype != "bfloat16":
        model = change(experiment.model, param_dtype="bfloat16")
        options += ("--model.param_dtype", "bfloat16")
        yield change(experiment, compute=compute, model=model), options


def fit(
    experiment: Experiment, name: str, slices: int = 1, say: Say = print
) -> tuple[Plan, tuple[str, ...]]:
    """The first candidate that fits, or the last one tried, and its options; says each.

    Raises ValueError: as `plan`, of the recipe as it is; a candidate that cannot be laid
    out on the mesh is passed over.
    """
    found = None
    for candidate, options in candidates(experiment, slices):
        note = " ".join(options) or "as it is"
        try:
            result = plan(candidate, name, slices, say)
        except ValueError as error:
            if found is None:
                raise
            say(f"{note}: {error}")
            continue
        found = result, options
        used = sum(result.hbm.values())
        verdict = "fits" if result.fits else "does not fit"
        say(f"{note}: {used:.1f} of {result.hbm_limit_gib} GiB, {verdict}")
        if result.fits:
            break
    return found
