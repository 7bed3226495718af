"""Eval-Anything, generation: choose modalities, follow instructions, make outputs that fit.

alanything evaluate configs/amg.py

First get the data, `hf download PKU-Alignment/NAME --repo-type dataset --local-dir
data/NAME`, for EvalAnything-InstructionFollowing and EvalAnything-Selection_Synergy; and
start a judge with OpenAI's interface that sees pictures and clips and hears sounds.

A model that makes its media itself is asked as it is. For one that writes text only, as in
the paper's table, set `agent=True` and `generators=(("image", DIR), ("audio", DIR), ...)`.
S_AMG needs `scorer`, a reward model of outputs that fit; the overall score needs a finished
run of configs/amu.py. It has no `--tiny`: it needs the data.
"""

from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines.asking import JudgeSource
from alanything_jax.pipelines.eval_anything import AMG


def config() -> AMG:
    """The playground's aligned model, until there is a larger one."""
    return AMG(
        instructions="data/EvalAnything-InstructionFollowing",
        selection="data/EvalAnything-Selection_Synergy",
        model=ModelSource("runs/playground/export"),
        judge=JudgeSource("Qwen/Qwen2.5-Omni-7B", url="http://localhost:8000/v1"),
    )
