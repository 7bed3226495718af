"""SFT of a small any-to-any model from nothing on the playground's lessons.

alanything train configs/sft_playground.py
"""

from alanything_jax.algorithms.sft import SFT
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """Answers, critiques and refinements in text, pictures, tunes and clips."""
    return Experiment(
        name="sft_playground",
        model=ModelSource(path="playground:96x4"),
        data=Data(
            path="playground:lessons/16000", heldout_groups=256, max_group_tokens=128
        ),
        algorithm=SFT(),
        optimizer=Optimizer(
            learning_rate=3e-3, warmup_steps=30, weight_decay=0.05, b2=0.98
        ),
        train=Train(steps=800, groups_per_step=64, checkpoint_every=100),
        compute=Compute(row_tokens=128, rows_per_microbatch=28, attention="dense"),
    )
