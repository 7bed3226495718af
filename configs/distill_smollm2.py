"""On-policy distillation of what DPO taught SmolLM2-135M back into its base.

alanything train configs/dpo_smollm2.py
alanything export runs/dpo_smollm2 runs/dpo_smollm2/export
alanything train configs/distill_smollm2.py

A larger model of the same tokenizer is a teacher in the same way, such as
`--teacher.path HuggingFaceTB/SmolLM2-360M-Instruct`. Without the rollout, and with
`heldout_groups` again, it learns offline from the data's answers.
"""

import dataclasses
from pathlib import Path

from alanything_jax.algorithms.distill import Distill
from alanything_jax.experiment import Experiment, Train, load
from alanything_jax.hub.source import ModelSource
from alanything_jax.models.lora import Lora
from alanything_jax.rewards.combine import Rewards
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.rollout import Rollout
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """Four answers of the policy's own a step, and four of the data (lambda = 0.5)."""
    base = load(Path(__file__).with_name("dpo_smollm2.py"))
    data = dataclasses.replace(base.data, heldout_groups=0, max_prompt_tokens=384)
    return dataclasses.replace(
        base,
        name="distill_smollm2",
        data=data,
        algorithm=Distill(beta=0.5, top=64),
        teacher=ModelSource("runs/dpo_smollm2/export"),
        reference="live",
        adapter=Lora(rank=16, alpha=32.0),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=2),
        train=Train(steps=60, groups_per_step=4, checkpoint_every=10),
        compute=Compute(row_tokens=1024, block=256, remat="dots"),
        rollout=Rollout(
            rewards=Rewards(),
            samples=1,
            max_new_tokens=128,
            slots=4,
            ptx=data,
            ptx_groups=4,
        ),
    )
