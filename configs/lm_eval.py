"""Standard benchmarks of a run or an export, by lm-evaluation-harness.

pip install 'alanything_jax[harness]'
alanything evaluate configs/lm_eval.py
alanything evaluate configs/lm_eval.py --model HuggingFaceTB/SmolLM2-135M-Instruct --limit 0

Tasks fetch their data from the Hugging Face hub. For pictures and other media:
`--package lmms_eval --tasks mmmu_val`, with the extra `lmms`.
"""

from alanything_jax.pipelines.harness import Harness


def config() -> Harness:
    """What configs/dpo_smollm2.py trained, on 100 questions of three tasks."""
    return Harness(
        model="runs/dpo_smollm2",
        tasks=("arc_easy", "hellaswag", "gsm8k"),
        limit=100,
    )
