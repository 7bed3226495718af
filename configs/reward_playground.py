"""A reward model of any mixture of modalities, from the demo's base (after `make demo`).

alanything train configs/reward_playground.py
alanything evaluate configs/reward_playground.py

Seen (seed 0, two busy CPU cores, 26 Nov 2026): held-out accuracy .70 on 512 error-free
pairs of new combinations; 6,000 pairs in 200 steps gave .62, and PPO learnt to please it
while the oracle's score fell from .74 to .67.
"""

from alanything_jax.algorithms.reward import Reward
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """Bradley-Terry on pairs of people's answers, a tenth of which are labelled wrong."""
    return Experiment(
        name="reward_playground",
        model=ModelSource(path="runs/demo/base/export", compute_dtype="mixed"),
        data=Data(
            "playground:pairs/30000/21/0.1",
            heldout_path="playground:pairs/512/22/0/test",
            max_group_tokens=128,
        ),
        algorithm=Reward(),
        optimizer=Optimizer("muon", learning_rate=3e-3, warmup_steps=10, b2=0.98),
        train=Train(steps=600, groups_per_step=48, checkpoint_every=100),
        compute=Compute(row_tokens=128, rows_per_microbatch=32, attention="dense"),
    )
