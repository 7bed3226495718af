"""The demo's models on new playground prompts, by the oracle (after `make demo`).

alanything evaluate configs/eval_playground.py
"""

from alanything_jax.pipelines.eval_playground import PlaygroundEval


def config() -> PlaygroundEval:
    """Base, aligned by language feedback, aligned by binary preferences."""
    return PlaygroundEval(
        models=(
            ("base", "runs/demo/base/export"),
            ("aligned", "runs/demo/export"),
            ("binary", "runs/demo/binary/export"),
        )
    )
