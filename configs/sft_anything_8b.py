"""Supervised fine-tuning of an any-to-any Llama-3.1-8B: all weights, 16 TPU chips or more.

alanything plan configs/sft_anything_8b.py --topology v6e:4x4
alanything train configs/sft_anything_8b.py --data.path DATA

Its codecs are trained first, by configs/codecs/; their sizes for a plan are in
configs/models/anything_8b.
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """configs/sft_llama3_8b.py with the model of configs/dpo_anything_8b.py."""
    return dataclasses.replace(
        experiment.load(HERE / "sft_llama3_8b.py"),
        name="sft_anything_8b",
        model=experiment.load(HERE / "dpo_anything_8b.py").model,
    )
