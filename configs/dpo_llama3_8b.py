"""DPO of Llama-3.1-8B-Instruct: all weights, 16 TPU chips or more.

alanything plan configs/dpo_llama3_8b.py --topology v5p:4x4x4
alanything train configs/dpo_llama3_8b.py --data.path PAIRS

Weights and AdamW are float32, sharded 16 ways and copied by the rest of the slice: a gather
over 16 chips overlaps with compute, one over 64 v5p chips does not (the TPU compiler makes
a sum of it). On v5e, which has half the memory of v6e: --compute.remat full.
"""

from pathlib import Path

from alanything_jax.algorithms.dpo import DPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute

MODELS = Path(__file__).parent / "models"


def config() -> Experiment:
    """Rows of 4,096 tokens, one a chip; reference log-probs cached."""
    return Experiment(
        name="dpo_llama3_8b",
        model=ModelSource(
            path="meta-llama/Llama-3.1-8B-Instruct",
            config=str(MODELS / "llama3_8b"),
            compute_dtype="bfloat16",
        ),
        data=Data(path="pairs", heldout_groups=256, max_group_tokens=4096),
        algorithm=DPO(beta=0.1),
        optimizer=Optimizer(learning_rate=5e-7, warmup_steps=20, b2=0.95),
        train=Train(epochs=1, groups_per_step=64, checkpoint_every=100),
        compute=Compute(
            row_tokens=4096,
            rows_per_microbatch=0,
            remat="dots",
            attention="flash",
            block=512,
            head_chunk=4096,
            mesh=("replica=-1", "fsdp=16"),
        ),
    )
