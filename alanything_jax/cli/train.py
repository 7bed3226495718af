"""`alanything train CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence

from alanything_jax import train
from alanything_jax.cli import recipe
from alanything_jax.pipelines.codec import CodecRecipe
from alanything_jax.sharding import distributed


def main(argv: Sequence[str]) -> int:
    """Train a recipe, or resume its run directory."""
    call = recipe.parse("train", argv)
    run = train(call.experiment, call.run_dir)
    if not distributed.is_primary():
        return 0
    if isinstance(call.experiment, CodecRecipe):
        print(
            f"wrote {run.path}/ (codec.safetensors, codec.json, metrics.jsonl)\n"
            f"next: open {run.path}/reconstructions.html"
        )
        return 0
    out = f"{call.experiment.name}-export" if run.bucket else run.export
    print(
        f"wrote {run}/ (metrics.jsonl, checkpoints/, tensorboard/)\n"
        f"next: alanything export {run} {out}"
    )
    return 0
