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
# (recipe, topology, what its command adds)
PLANS = (
    ("dpo_llama3_8b", "v5p:4x4x4", ()),
    ("dpo_llama3_8b", "v6e:4x4", ()),
    ("dpo_llama3_8b_lora", "v5e:2x4", FULL),
    ("colab_dpo", "v5e:1x1", ()),
    ("sft_llama3_8b", "v5e:4x4", FULL),
    ("reward_llama3_8b", "v5e:4x4", FULL),
    ("critique_qwen3_8b", "v5e:4x4", FULL),
    ("dpo_anything_8b", "v5p:4x4x4", ()),
    ("sft_anything_8b", "v6e:4x4", ()),
    ("colab_dpo", "v6e:1x1", ()),
    ("dpo_qwen3_8b", "v5p:4x4x4", ()),
    ("dpo_llama3_8b", "v5e:4x4", FULL),
    ("dpo_llama3_8b", "v5e:8x8", FULL),
    ("dpo_llama3_8b", "v6e:8x8", ()),
    ("dpo_llama3_8b", "v5p:4x4x8", ()),
)


def main() -> int:
    """Run what is missing, one after another; the exit code counts those that failed."""
    failed = 0
    for recipe, topology, more in PLANS:
        out = ROOT / "docs" / "plans" / f"{recipe}@{topology.replace(':', '-')}.json"
        if out.exists() and "--again" not in sys.argv:
            continue
        command = [sys.executable, "-m", "alanything_jax.cli.main", "plan"]
        command += [f"configs/{recipe}.py", "--topology", topology]
        print(recipe, topology, *more, flush=True)
        done = subprocess.run([*command, *more, "--json", str(out)], cwd=ROOT)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
