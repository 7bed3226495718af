"""KTO with the model of `dpo_smollm2.py`: of its pairs, each answer alone with a label.

alanything train configs/kto_smollm2.py
"""

import dataclasses
from pathlib import Path

from alanything_jax.algorithms.kto import KTO
from alanything_jax.experiment import Experiment, load


def config() -> Experiment:
    """LoRA on every kernel; another prompt's answer beside each labelled one."""
    pairs = load(Path(__file__).with_name("dpo_smollm2.py"))
    return dataclasses.replace(
        pairs,
        name="kto_smollm2",
        algorithm=KTO(),
        data=dataclasses.replace(pairs.data, view="mismatched"),
        train=dataclasses.replace(pairs.train, groups_per_step=16),
    )
