"""A run's newest checkpoint as a bundle: what export, evaluation and chat start from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.algorithms.base import scores_trained
from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.hub.source import load_model
from alanything_jax.models import lora
from alanything_jax.models.params import unflatten
from alanything_jax.sharding import distributed, pjit, rules
from alanything_jax.sharding import mesh as meshes
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts, prepare
from alanything_jax.training.run_dir import RunDir, locate


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run as it stands.

    Attributes:
      bundle: the base model with the trained weights in it, adapter not merged.
      adapter: the LoRA tree, or None.
      step: of the checkpoint.
    """

    experiment: recipes.Experiment
    bundle: hub.Bundle
    adapter: dict[str, Any] | None
    step: int

    def merged(self) -> hub.Bundle:
        """The bundle with its adapter added to the weights."""
        if self.adapter is None:
            return self.bundle
        scale = self.experiment.adapter.scale
        params = lora.merge(self.bundle.params, self.adapter, scale)
        return dataclasses.replace(self.bundle, params=params)


def recipe_of(run: RunDir) -> recipes.Experiment:
    """The recipe a run directory was made from.

    Raises FileNotFoundError: it is no run directory.
    """
    if not run.config.exists():
        raise FileNotFoundError(
            f"{run.path} is no run directory: it has no config.json. Give the directory "
            "that `alanything train` wrote."
        )
    return recipes.from_json(json.loads(run.config.read_text()))


def load_run(directory: str | Path) -> Restored:
    """The newest complete checkpoint of a run.

    Raises FileNotFoundError: no run, or a run without a checkpoint yet.
    """
    run = locate(directory, to_read=True)
    # Of a run in a bucket, process 0 alone has the small files.
    found = recipes.to_json(recipe_of(run)) if distributed.is_primary() else None
    experiment = recipes.from_json(distributed.gather(found)[0])
    # Several processes hold it together, on the run's own mesh.
    mesh = meshes.make(experiment.compute.mesh if distributed.several() else ())
    table = rules.preset(experiment.compute.rules)
    bundle = load_model(
        experiment.model,
        scores_trained(experiment.algorithm),
        experiment.seed,
        prepare.place_read(experiment.model, mesh, table),
    )
    program = prepare.program_of(experiment, bundle.model.config)
    trainable, frozen, rates, shardings = prepare.partition(
        experiment, program, bundle, mesh, table
    )
    transformation = optimizers.make(experiment.optimizer, 1, rates)
    state = parts.initial_state(trainable, shardings, mesh, transformation)
    with checkpoints.manager(run.checkpoints, experiment.train.keep) as saved:
        step = checkpoints.latest_step(saved)
        if step is None:
            raise FileNotFoundError(
                f"{run.path} has no complete checkpoint yet. Run its training first."
            )
        state = checkpoints.restore(saved, state, step)
    tree = unflatten(jax.tree.map(pjit.fetch, frozen | state.trainable))
    whole = dataclasses.replace(bundle, params=tree[program.trained])
    return Restored(experiment, whole, tree.get("lora"), step)
