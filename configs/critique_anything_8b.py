"""A critic from an any-to-any Llama-3.1-8B: all weights, 16 TPU chips or more.

alanything plan configs/critique_anything_8b.py --topology v6e:4x4
alanything train configs/critique_anything_8b.py --data.path DATA

Its codecs are trained first, by configs/codecs/; their sizes for a plan are in
configs/models/anything_8b.
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """configs/critique_llama3_8b.py with the model of configs/dpo_anything_8b.py."""
    return dataclasses.replace(
        experiment.load(HERE / "critique_llama3_8b.py"),
        name="critique_anything_8b",
        model=experiment.load(HERE / "dpo_anything_8b.py").model,
    )
