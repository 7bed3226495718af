"""Plans of the pod recipes, for the docs: docs/plans/RECIPE@TOPOLOGY.json, one a call.

    python benchmarks/plans.py            those that are missing
    python benchmarks/plans.py --again    all of them

Each is `alanything plan`: the recipe's real step by the TPU compiler, two to five minutes
on two cores. Nothing here runs on a TPU; the times are estimates.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FULL = ("--compute.remat", "full")
# Eight v5e chips have no room for AdamW of eight billion weights.
LORA = ("--adapter.rank", "64", "--model.param_dtype", "bfloat16")
LORA += ("--compute.mesh", "fsdp=-1", *FULL)
TOPOLOGIES = {
    "v5p:4x4x4": (),
    "v6e:4x4": (),
    "v5e:4x4": FULL,
    "v5e:2x4": LORA,
    "v5p:4x4x8": (),
    "v6e:8x8": (),
    "v5e:8x8": FULL,
}
MODELS = ("llama3_8b", "qwen3_8b", "anything_8b")
# (recipe, topology, what its command adds)
PLANS = [
    ("dpo_llama3_8b_lora", "v5e:2x4", FULL),
    ("colab_dpo", "v5e:1x1", ()),
    ("colab_dpo", "v6e:1x1", ()),
    ("colab_dpo", "v5e:2x4", ()),
    ("llf_playground", "v5e:1x1", ()),
    ("dpo_qwen2_5_vl_3b", "v5e:4x4", ()),
]
PLANS += [
    (f"{job}_{model}", topology, more)
    for topology, more in TOPOLOGIES.items()
    for model in MODELS
    for job in ("dpo", "sft", "reward", "critique")
]


def main() -> int:
    """Run what is missing, one after another; the exit code counts those that failed."""
    failed = 0
    for recipe, topology, more in PLANS:
        out = ROOT / "docs" / "plans" / f"{recipe}@{topology.replace(':', '-')}.json"
        # A recipe of several stages has a file of each.
        there = out.exists() or list(out.parent.glob(f"{out.stem}-[a-z]*.json"))
        if there and "--again" not in sys.argv:
            continue
        command = [sys.executable, "-m", "alanything_jax.cli.main", "plan"]
        command += [f"configs/{recipe}.py", "--topology", topology]
        print(recipe, topology, *more, flush=True)
        done = subprocess.run([*command, *more, "--json", str(out)], cwd=ROOT)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
