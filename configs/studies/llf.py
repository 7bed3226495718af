"""How much is the feedback, and how much is learning from one's own answers?

alanything evaluate configs/studies/llf.py --quick     five arms, three seeds
alanything evaluate configs/studies/llf.py             all arms, five seeds; resumable
"""

import dataclasses
import runpy
from pathlib import Path

from alanything_jax.experiment import Train, load
from alanything_jax.pipelines.study import Study

CONFIGS = Path(__file__).parents[1]


def config() -> Study:
    """The demo's recipe, every arm against its base."""
    change = dataclasses.replace
    reward = load(CONFIGS / "reward_playground.py")
    online = load(CONFIGS / "ppo_playground.py")
    return Study(
        llf=runpy.run_path(str(CONFIGS / "llf_playground.py"))["config"](),
        # A few epochs over an arm's pairs, and a hundred steps as the other arms have.
        reward=change(reward, train=Train(steps=40, groups_per_step=32)),
        online=change(online, train=change(online.train, steps=100)),
    )
