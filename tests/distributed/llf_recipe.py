"""Learning from language feedback in little, with a mesh over two devices."""

import dataclasses
from pathlib import Path

from alanything_jax import experiment as recipes


def config():
    """No base to train: equal pairs need equal weights to the last bit."""
    path = Path(__file__).parents[2] / "configs" / "llf_playground.py"
    recipe = recipes.load(path).tiny()
    change = dataclasses.replace
    align = change(
        recipe.align,
        train=change(recipe.align.train, steps=4, groups_per_step=4, tensorboard=False),
        compute=change(
            recipe.align.compute,
            row_tokens=256,
            rows_per_microbatch=4,
            attention="dense",
            mesh=("fsdp=2",),
        ),
    )
    return change(
        recipe,
        base=None,
        critic="policy",
        feedback=blames,
        align=change(align, data=change(align.data, max_group_tokens=256)),
        prompts="playground:prompts/64/7",
        shard_rows=16,
        max_new_tokens=72,
    )


def blames(example, response):
    """A critic that finds every answer bad."""
    del example, response
    return "shows one red circle . verdict bad ."
