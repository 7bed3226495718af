"""Learning from language feedback on the playground: base, critic, pairs, alignment.

alanything llf configs/llf_playground.py
"""

from alanything_jax.algorithms.critique import Critique
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.sft import SFT
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines.llf import LLF
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute

MODEL = ModelSource(path="playground:96x4", compute_dtype="mixed")
# Rows that nearly every step fits into: with 30, a quarter of the steps took two passes.
COMPUTE = Compute(row_tokens=128, rows_per_microbatch=34, attention="dense")


def config() -> LLF:
    """A base that answers, criticises and refines; a critic taught from it; DPO."""
    base = Experiment(
        name="base",
        model=MODEL,
        data=Data("playground:lessons/30000", heldout_groups=256, max_group_tokens=128),
        algorithm=SFT(),
        optimizer=Optimizer("muon", learning_rate=5e-3, warmup_steps=20, b2=0.98),
        train=Train(steps=1400, groups_per_step=64, checkpoint_every=100),
        compute=COMPUTE,
    )
    critic = Experiment(
        name="critic",
        model=MODEL,
        data=Data(
            "playground:attempts/3500/1",
            view="critiques",
            templates="playground",
            heldout_groups=256,
            max_group_tokens=128,
        ),
        algorithm=Critique(per_token=True),
        optimizer=Optimizer("muon", learning_rate=3e-3, warmup_steps=10, b2=0.98),
        train=Train(steps=200, groups_per_step=64, checkpoint_every=100),
        compute=COMPUTE,
    )
    align = Experiment(
        name="align",
        model=MODEL,
        data=Data("set by the pipeline", max_group_tokens=128),
        algorithm=DPO(beta=0.1, nll_weight=1.0),
        optimizer=Optimizer(learning_rate=5e-5, warmup_steps=5, b2=0.98),
        train=Train(steps=100, groups_per_step=32, checkpoint_every=50),
        compute=COMPUTE,
    )
    return LLF(
        name="llf_playground",
        base=base,
        critic=critic,
        align=align,
        prompts="playground:prompts/2048/7",
        templates="playground",
        verify="critic",
        max_new_tokens=48,
        max_critique_tokens=48,
        shard_rows=256,
        max_pairs=1000,
    )
