"""How much is the feedback, and how much is learning from one's own answers?

alanything evaluate configs/studies/llf.py --quick     five arms, three seeds
alanything evaluate configs/studies/llf.py             all arms, five seeds; resumable
"""

import runpy
from pathlib import Path

from alanything_jax.pipelines.study import Study

DEMO = Path(__file__).parents[1] / "llf_playground.py"


def config() -> Study:
    """The demo's recipe, every arm against its base."""
    return Study(llf=runpy.run_path(str(DEMO))["config"]())
