"""PPO against a reward model that was trained here, in every modality.

alanything train configs/reward_playground.py
alanything export runs/reward_playground runs/reward_playground/export
alanything train configs/ppo_playground.py

Seen (three seeds, two busy CPU cores, 26 Nov 2026; on 512 new prompts at T=1, paired with
the base, by benchmarks/rollout_gains.py --judge): the reward model's score rises by .37,
.38, .40 from -1.58, in every output modality in every seed, and the oracle's, which only
looks on, by .072, .084, .084 from .678 (95% intervals are .025 wide to either side); KL .05
to .07 nats a token. The curve of a single run is noisy: means of 20 steps of the reward
model -1.42 to -.93, -1.31 to -1.00, -1.06 to -.96.

The reward model had 30,000 pairs (held-out accuracy .70). Against one of 6,000 pairs (.62)
and at a kl_weight of .02, the model's score rose from -.65 to -.07 while the oracle's fell
from .738 to .672: the policy had found its faults.
"""

from alanything_jax.algorithms.ppo import PPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.playground.oracle import Oracle
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.rewards.model import TrainedReward
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.rollout import Rollout
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """Four answers to each of 32 prompts; the oracle only looks on (weight 0)."""
    judge = ModelSource(path="runs/reward_playground/export", compute_dtype="mixed")
    return Experiment(
        name="ppo_playground",
        model=ModelSource(path="runs/demo/base/export", compute_dtype="mixed"),
        value=judge,
        data=Data("playground:prompts/2048/7"),
        algorithm=PPO(kl_weight=0.1),
        optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5, b2=0.98),
        train=Train(steps=200, groups_per_step=16, checkpoint_every=50),
        compute=Compute(row_tokens=512, rows_per_microbatch=8, attention="blockwise"),
        reference="live",
        rollout=Rollout(
            rewards=Rewards(
                (
                    Term("judge", TrainedReward(judge), batched=True),
                    Term("oracle", Oracle(), weight=0.0),
                )
            ),
            samples=4,
            passes=2,
            minibatches=2,
            max_new_tokens=48,
            report_by="goal.task",
            slots=128,
        ),
    )
