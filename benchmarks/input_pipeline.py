"""Input at a pod's speed: what one core packs and encodes, against what chips eat.

python benchmarks/input_pipeline.py [--groups 2048] [--repeats 5] [--json FILE]

A run encodes its records once (media decoded, text tokenized), before its first step; on
the way of a step lies packing alone, ahead of need in Grain's threads. Both are timed on
one pinned core, CPU seconds, medians. The appetite is the planned recipes' (estimates of
`alanything plan`, docs/plans): tokens a second and chip, times the chips of a host. The
last column is how many cores a host needs so that no step waits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from alanything_jax.data import packing, pipeline  # noqa: E402
from alanything_jax.data.groups import Data, load_groups  # noqa: E402
from alanything_jax.hub.source import playground_bundle, tiny_bundle  # noqa: E402

PLANS = Path(__file__).parents[1] / "docs" / "plans"
# Chips of one host, and its cores, of the machine types that Google gives them.
HOSTS = {"v5e": (4, 112), "v5p": (4, 208), "v6e": (4, 180)}
ROW_TOKENS, ROWS = 4096, 4


def timed(call):
    """CPU seconds of a call, and what it gave."""
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


def encode(kind: str, count: int):
    """(groups, CPU seconds) of one source, from records to token ids."""
    if kind == "media":
        bundle = playground_bundle("48x2")
        data = Data(f"playground:pairs/{count}", max_group_tokens=ROW_TOKENS)
    else:
        bundle = tiny_bundle("llama")
        data = Data("generated", max_group_tokens=ROW_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        took, (groups, _) = timed(
            lambda: load_groups(
                data,
                bundle.tokenizer,
                2,
                Path(folder) / "q.jsonl",
                lambda line: None,
                bundle.coder,
            )
        )
    return groups[:count], took * count / len(groups)


def pack(groups, repeats: int):
    """(CPU seconds, tokens) of packing all groups into steps of full rows."""
    mean = sum(map(packing.group_length, groups)) / len(groups)
    per_step = max(1, int(0.9 * ROWS * ROW_TOKENS / mean))
    layout = packing.Layout(ROWS, ROW_TOKENS, per_step, 2)
    source = pipeline.StepSource(groups, layout, per_step)
    steps = max(1, len(groups) // per_step)
    times, tokens = [], 0
    for _ in range(repeats):
        took, made = timed(lambda: [source[n] for n in range(steps)])
        times.append(took)
        tokens = sum(step.tokens for step in made)
    return statistics.median(times), tokens


def main() -> None:
    """Measure, compare with every plan, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for kind in ("text", "media"):
        groups, encoding = encode(kind, options.groups)
        seconds, tokens = pack(groups, options.repeats)
        rate = tokens / seconds
        print(
            f"{kind}: {len(groups) / encoding:,.0f} groups/s encoded once, "
            f"{len(groups) / seconds:,.0f} groups/s ({rate:,.0f} tokens/s) packed, a core; "
            f"{tokens / len(groups):.0f} tokens a group"
        )
        for path in sorted(PLANS.glob("*.json")):
            plan = json.loads(path.read_text())
            generation = plan["topology"].split(":")[0]
            if generation not in HOSTS or not plan["tokens_per_s_per_chip"]:
                continue
            chips, cores = HOSTS[generation]
            chips = min(chips, plan["chips"])
            appetite = chips * plan["tokens_per_s_per_chip"]
            cases.append(
                {
                    "case": f"{kind} {path.stem}",
                    "ours": rate,
                    "peer": appetite,
                    "ratio": rate / appetite,
                    "cores_needed": appetite / rate,
                    "cores_there": cores,
                }
            )
            print(
                f"  {path.stem}: a host eats {appetite:,.0f} tokens/s: "
                f"{appetite / rate:.2f} of its {cores} cores"
            )
    if options.json:
        figures = {"settings": vars(options) | {"json": None}, "cases": cases}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
