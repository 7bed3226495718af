"""The demo's models on new playground prompts, by the oracle (after `make playground`).

alanything evaluate configs/eval_playground.py
"""

from alanything_jax.pipelines.eval_playground import PlaygroundEval


def config() -> PlaygroundEval:
    """Base, aligned by language feedback, aligned by binary preferences."""
    return PlaygroundEval(
        models=(
            ("base", "runs/playground/base/export"),
            ("aligned", "runs/playground/export"),
            ("binary", "runs/playground/binary/export"),
        )
    )
