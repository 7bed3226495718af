"""A run's newest checkpoint as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.hub.peft import save_adapter
from alanything_jax.sharding import distributed
from alanything_jax.training.restore import load_run


def export(
    run_dir: str | Path, out_dir: str | Path | None = None, *, adapter: bool = False
) -> Path:
    """Export a run. On several processes all must call it; the first one writes.

    Args:
      run_dir: what `alanything train` wrote.
      out_dir: new or empty; default `<run_dir>/export`.
      adapter: write the LoRA alone, in PEFT's layout, instead of merged weights.

    Raises:
      ValueError: `adapter` of a run that trained the weights; a non-empty `out_dir`.
    """
    out = Path(out_dir) if out_dir else Path(run_dir) / "export"
    restored = load_run(run_dir)
    if not distributed.is_primary():
        return out
    if adapter:
        if restored.adapter is None:
            raise ValueError(
                f"{run_dir} trained the weights, not an adapter: export it without "
                "--adapter."
            )
        return save_adapter(
            restored.bundle, restored.adapter, restored.experiment.adapter, out
        )
    recipe = restored.experiment
    notes = {
        "recipe": recipe.name,
        "algorithm": json.dumps(recipes.to_json(recipe.algorithm)),
        "data": " + ".join(recipe.data.paths),
        "optimizer steps": restored.step,
    }
    return hub.save(restored.merged(), out, notes=notes)
