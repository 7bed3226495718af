"""SimPO with the model and the pairs of `dpo_smollm2.py`: no reference is needed.

alanything train configs/simpo_smollm2.py
"""

import dataclasses
from pathlib import Path

from alanything_jax.algorithms.reference_free import SimPO
from alanything_jax.experiment import Experiment, load


def config() -> Experiment:
    """LoRA on every kernel."""
    pairs = load(Path(__file__).with_name("dpo_smollm2.py"))
    return dataclasses.replace(pairs, name="simpo_smollm2", algorithm=SimPO())
