"""DPO of configs/vqa_easy.py's model on right and wrong answers to easy-VQA, on a CPU.

alanything export runs/vqa_easy runs/vqa_easy/export
alanything train configs/vqa_easy_dpo.py
"""

from alanything_jax.algorithms.dpo import DPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """The wrong answer of a pair is of the right one's kind: a shape, a colour, yes or no."""
    return Experiment(
        name="vqa_easy_dpo",
        model=ModelSource(path="runs/vqa_easy/export", family="llava"),
        data=Data(
            path="pypi:easy-vqa==1.0/easy_vqa/data//train/questions.json",
            sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
            format="easy_vqa",
            heldout_groups=512,
            max_group_tokens=64,
        ),
        algorithm=DPO(beta=1.0),
        # 400 steps see two thirds of the pairs once: caching them all would cost more.
        reference="live",
        optimizer=Optimizer("muon", learning_rate=5e-4, warmup_steps=20, b2=0.98),
        train=Train(steps=400, groups_per_step=64, checkpoint_every=100),
        compute=Compute(
            row_tokens=144,
            rows_per_microbatch=17,
            attention="dense",
            media_patches=72,
        ),
        seed=1,
    )
