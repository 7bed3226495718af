"""A reward model from Qwen3-8B: all weights, 16 TPU chips or more.

alanything plan configs/reward_qwen3_8b.py --topology v6e:4x4
alanything train configs/reward_qwen3_8b.py --data.path DATA
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment
from alanything_jax.algorithms.reward import Reward

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """As configs/dpo_llama3_8b.py, but for what is said here."""
    change = dataclasses.replace
    base = experiment.load(HERE / "dpo_llama3_8b.py")
    return change(
        base,
        name="reward_qwen3_8b",
        model=change(
            base.model,
            path="Qwen/Qwen3-8B",
            family="qwen3",
            config=str(HERE / "models/qwen3_8b"),
        ),
        algorithm=Reward(),
        optimizer=change(base.optimizer, learning_rate=5e-6),
    )
