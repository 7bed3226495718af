"""The tiny GRPO recipe over four devices: what jobs of several processes learn from."""

import dataclasses
from pathlib import Path

from alanything_jax import experiment as recipes
from tests.distributed.recipe import on_four


def config():
    """Two groups of three answers a step, two steps a rollout, KL to a live reference."""
    path = Path(__file__).parents[2] / "configs" / "grpo_playground.py"
    recipe = recipes.tiny(recipes.load(path))
    change = dataclasses.replace
    train = change(
        recipe.train, steps=4, groups_per_step=2, checkpoint_every=1, tensorboard=False
    )
    compute = on_four(recipe.compute)
    model = change(recipe.model, path="playground:24x1")
    rollout = change(recipe.rollout, samples=3, max_new_tokens=10, passes=2)
    return change(recipe, model=model, train=train, compute=compute, rollout=rollout)
