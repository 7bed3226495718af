"""The tiny DPO recipe over four devices, smaller still: what the jobs here train."""

import dataclasses
from pathlib import Path

from alanything_jax import experiment as recipes

STEPS = 12


def on_four(compute):
    """Short rows, one a device."""
    return dataclasses.replace(
        compute,
        row_tokens=64,
        rows_per_microbatch=4,
        attention="dense",
        mesh=("fsdp=4",),
    )


def config():
    """All weights train, so that parameters and optimizer state are sharded."""
    path = Path(__file__).parents[2] / "configs" / "dpo_smollm2.py"
    recipe = recipes.tiny(recipes.load(path))
    change = dataclasses.replace
    train = change(
        recipe.train,
        steps=STEPS,
        groups_per_step=4,
        checkpoint_every=2,
        tensorboard=False,
    )
    compute = on_four(recipe.compute)
    data = change(recipe.data, heldout_groups=4)
    return change(recipe, adapter=None, train=train, compute=compute, data=data)
