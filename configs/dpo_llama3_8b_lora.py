"""DPO of Llama-3.1-8B-Instruct with an adapter, for eight v5e chips (one host) and more.

alanything plan configs/dpo_llama3_8b_lora.py --topology v5e:2x4
alanything train configs/dpo_llama3_8b_lora.py --data.path PAIRS

The base is bfloat16 and sharded over all chips; with the adapter off it is the reference.
"""

import dataclasses
from pathlib import Path

from alanything_jax import experiment
from alanything_jax.models.lora import Lora

HERE = Path(__file__).parent


def config() -> experiment.Experiment:
    """As configs/dpo_llama3_8b.py, but for what is said here."""
    change = dataclasses.replace
    base = experiment.load(HERE / "dpo_llama3_8b.py")
    return change(
        base,
        name="dpo_llama3_8b_lora",
        model=change(base.model, param_dtype="bfloat16"),
        adapter=Lora(rank=64, alpha=64.0),
        optimizer=change(base.optimizer, learning_rate=2e-5),
        compute=change(base.compute, mesh=("fsdp=-1",)),
    )
