"""DPO of configs/vqa_easy.py's model on right and wrong answers to easy-VQA, on a CPU.

alanything export runs/vqa_easy runs/vqa_easy/export
alanything train configs/vqa_easy_dpo.py

Measured, commits c3bd31a to 6c6cbb8, two shared cores (AMD EPYC, load 10 to 16), seed 1:
15 minutes, 10 of them to encode. It does NOT make the answers better. On the 9,673 test
questions, with exact McNemar p-values against the start:

    SFT, the start                   .865 [.858, .872]    shapes .481
    DPO, beta 1 (this file)          .866 [.859, .873]    shapes .495    p = .72
    DPO, beta 0.1                    .860 [.853, .867]    shapes .443    p = .002
    DPO, nll 1, rate x2, 300 steps   .865 [.858, .871]    shapes .484    p = .74
    400 more SFT steps, same data    .865 [.858, .872]    shapes .482    p = .91

The pairs are of pictures that SFT had seen, and nearly all that is wrong, of "is there a
circle?" too, is about shapes, which the tower hardly tells apart. With beta 0.1 the loss goes
on pushing down what was never said: a wrong answer's mean log-prob goes from -7 to -26, and
the right ones' sinks with it, from -.28 to -.77.
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
