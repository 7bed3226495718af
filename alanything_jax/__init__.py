"""alanything_jax: align any-to-any models with human intent, on TPUs and on one CPU.

The command line's verbs as calls; each imports what it needs when it is called.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def train(experiment: Any, run_dir: Any = None, say: Any = print) -> Any:
    """Train a recipe; see `training.loop.train`, and `training.codec` for codecs."""
    from alanything_jax.training import codec, loop

    if isinstance(experiment, codec.CodecRecipe):
        return codec.train_codec(experiment, run_dir, say)
    return loop.train(experiment, run_dir, say)


def evaluate(experiment: Any, run_dir: Any = None, say: Any = print) -> dict[str, Any]:
    """Held-out accuracy of a run; see `alanything_jax.pipelines.evaluate.evaluate`."""
    from alanything_jax.pipelines import evaluate as pipeline

    return pipeline.evaluate(experiment, run_dir, say)


def export(run_dir: Any, out_dir: Any = None, adapter: bool = False) -> Any:
    """Write a run's newest checkpoint as an HF directory; see `pipelines.export`."""
    from alanything_jax.pipelines import export as pipeline

    return pipeline.export(run_dir, out_dir, adapter=adapter)


def generate(*args: Any, **kwargs: Any) -> Any:
    """Answers for prompts; see `alanything_jax.generation.generate.generate`."""
    from alanything_jax.generation import generate as engine

    return engine.generate(*args, **kwargs)
