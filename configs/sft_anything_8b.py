"""Supervised fine-tuning of an any-to-any Llama-3.1-8B: all weights, 16 TPU chips or more.

alanything plan configs/sft_anything_8b.py --topology v6e:4x4
alanything train configs/sft_anything_8b.py --data.path DATA

Its codecs are trained first, by configs/codecs/; their sizes for a plan are in
configs/models/anything_8b.
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment
from alanything_jax.algorithms.sft import SFT

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """As configs/dpo_llama3_8b.py, but for what is said here."""
    change = dataclasses.replace
    base = experiment.load(HERE / "dpo_llama3_8b.py")
    return change(
        base,
        name="sft_anything_8b",
        model=change(
            base.model,
            codecs=("runs/codec_image", "runs/codec_audio", "runs/codec_video"),
            config=str(HERE / "models/anything_8b"),
        ),
        algorithm=SFT(),
        optimizer=change(base.optimizer, learning_rate=1e-5),
    )
