"""alanything_jax: align any-to-any models with human intent, on TPUs and on one CPU.

The command line's verbs as calls; each imports what it needs when it is called.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def train(experiment: Any, run_dir: Any = None, say: Any = print) -> Any:
    """Train a recipe; see `training.loop.train`, `training.online.train` where it has a
    rollout, and `pipelines.codec` for codecs."""
    from alanything_jax.pipelines import codec
    from alanything_jax.training import loop, online

    if isinstance(experiment, codec.CodecRecipe):
        return codec.train_codec(experiment, run_dir, say)
    if experiment.rollout is not None:
        return online.train(experiment, run_dir, say)
    return loop.train(experiment, run_dir, say)


def evaluate(recipe: Any, run_dir: Any = None, say: Any = print) -> dict[str, Any]:
    """What a recipe measures: a run's held-out accuracy, a benchmark, an arena.

    See `pipelines.evaluate`, `eval_answers`, `eval_anything`, `eval_playground`, `arena`,
    `harness` and `study`.
    """
    from alanything_jax.pipelines import (
        arena,
        eval_answers,
        eval_anything,
        eval_playground,
        harness,
        study,
    )
    from alanything_jax.pipelines import evaluate as pipeline

    if isinstance(recipe, arena.Arena):
        return arena.arena(recipe, run_dir, say)
    if isinstance(recipe, eval_playground.PlaygroundEval):
        return eval_playground.evaluate_playground(recipe, run_dir, say)
    if isinstance(recipe, eval_answers.AnswerEval):
        return eval_answers.evaluate_answers(recipe, run_dir, say)
    if isinstance(recipe, harness.Harness):
        return harness.evaluate_harness(recipe, run_dir, say)
    if isinstance(recipe, study.Study):
        return study.study(recipe, run_dir, say)
    if isinstance(recipe, eval_anything.AMU):
        return eval_anything.evaluate_amu(recipe, run_dir, say)
    if isinstance(recipe, eval_anything.AMG):
        return eval_anything.evaluate_amg(recipe, run_dir, say)
    return pipeline.evaluate(recipe, run_dir, say)


def annotate(recipe: Any, run_dir: Any = None, say: Any = print) -> Any:
    """Answers of several models, judged; see `pipelines.annotate_recipe`."""
    from alanything_jax.pipelines import annotate_recipe as pipeline

    return pipeline.annotate_recipe(recipe, run_dir, say)


def llf(recipe: Any, run_dir: Any = None, say: Any = print) -> Any:
    """Learning from language feedback; see `alanything_jax.pipelines.llf.llf`."""
    from alanything_jax.pipelines import llf as pipeline

    return pipeline.llf(recipe, run_dir, say)


def export(run_dir: Any, out_dir: Any = None, adapter: bool = False) -> Any:
    """Write a run's newest checkpoint as an HF directory; see `pipelines.export`."""
    from alanything_jax.pipelines import export as pipeline

    return pipeline.export(run_dir, out_dir, adapter=adapter)


def plan(experiment: Any, topology: str, slices: int = 1, say: Any = print) -> Any:
    """Compile a recipe's step for a TPU topology; see `alanything_jax.planning.plan`."""
    from alanything_jax.planning import plan as planning

    return planning.plan(experiment, topology, slices, say)


def generate(*args: Any, **kwargs: Any) -> Any:
    """Answers for prompts; see `alanything_jax.generation.generate.generate`."""
    from alanything_jax.generation import generate as engine

    return engine.generate(*args, **kwargs)
