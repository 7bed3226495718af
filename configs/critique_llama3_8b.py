"""A critic from Llama-3.1-8B-Instruct: all weights, 16 TPU chips or more.

alanything plan configs/critique_llama3_8b.py --topology v6e:4x4
alanything train configs/critique_llama3_8b.py --data.path DATA
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment
from alanything_jax.algorithms.critique import Critique

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """As configs/dpo_llama3_8b.py, but for what is said here."""
    change = dataclasses.replace
    base = experiment.load(HERE / "dpo_llama3_8b.py")
    return change(
        base,
        name="critique_llama3_8b",
        algorithm=Critique(),
        optimizer=change(base.optimizer, learning_rate=1e-5),
        data=change(base.data, view="critiques"),
    )
