"""DPO of Qwen2.5-VL-3B on pictures and text of Align Anything: 16 TPU chips or more.

alanything plan configs/dpo_qwen2_5_vl_3b.py --topology v5e:4x4
alanything train configs/dpo_qwen2_5_vl_3b.py --data.path PAIRS

PAIRS is what `alanything data convert ... --format align_anything --subset ti2t` wrote. A
plan takes half of every row to be pictures; the encoder keeps its weights.
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """As configs/dpo_llama3_8b.py, but for what is said here."""
    change = dataclasses.replace
    base = experiment.load(HERE / "dpo_llama3_8b.py")
    return change(
        base,
        name="dpo_qwen2_5_vl_3b",
        model=change(
            base.model,
            path="Qwen/Qwen2.5-VL-3B-Instruct",
            family="qwen2_5_vl",
            config=str(HERE / "models/qwen2_5_vl_3b"),
        ),
        optimizer=change(base.optimizer, rates=("encoders/*=0",)),
        compute=change(base.compute, remat="full"),
    )
