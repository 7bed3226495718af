"""A reward model from Qwen3-8B: all weights, 16 TPU chips or more.

alanything plan configs/reward_qwen3_8b.py --topology v6e:4x4
alanything train configs/reward_qwen3_8b.py --data.path DATA
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """configs/reward_llama3_8b.py with the model of configs/dpo_qwen3_8b.py."""
    return dataclasses.replace(
        experiment.load(HERE / "reward_llama3_8b.py"),
        name="reward_qwen3_8b",
        model=experiment.load(HERE / "dpo_qwen3_8b.py").model,
    )
