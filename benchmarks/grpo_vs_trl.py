"""GRPO: TRL's GRPOTrainer and ours, the same model files, prompts and group size, in turn.

python benchmarks/grpo_vs_trl.py [--quick] [--json FILE] [--repeats 3] [--work DIR]

A step samples 8 answers of 128 tokens to each of 8 prompts of 64, scores them by a rule,
and takes one optimizer step on them. Each side runs in its own process pinned to one core
with one thread; the sides take turns; figures are medians of CPU seconds a step (user +
system), warm-up and compiling left out. Each side first chooses among its settings (the
sweep, printed). Before that, our trainer takes TRL's first samples: log-probs and the
gradient's norm must agree to 1e-3.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from dpo_vs_trl import pinned

PROMPTS, GROUP, NEW, LENGTH = 8, 8, 128, 64
SWEEP = {
    "trl": [
        {"bf16": False, "batch": 64},
        {"bf16": False, "batch": 16},
        {"bf16": True, "batch": 64},
        {"bf16": False, "weights": "bfloat16", "batch": 64},
        {"bf16": False, "batch": 64, "cache": "static"},
    ],
    "ours": [
        {"dtype": "float32", "row_tokens": 1152, "rows": 1, "block": 64},
        {"dtype": "mixed", "row_tokens": 1152, "rows": 1, "block": 64},
        {"dtype": "mixed", "row_tokens": 1152, "rows": 2, "block": 128},
    ],
}


def score(text: str) -> float:
    """The reward: how many different characters there are among the text's, 0 .. 1."""
    return len(set(text)) / max(1, len(text))


def run(side: str, folder: Path, settings: dict) -> dict:
    """One process of one side."""
    return pinned(f"run_grpo_{side}.py", folder, settings)


def build(folder: Path) -> None:
    """The model of `pairs`, and prompts of `LENGTH` tokens of real text."""
    import pairs
    import transformers

    pairs.build(folder, 8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    kept, seen = [], set()
    for row in pairs.read(folder / "chat.jsonl"):
        ids = tokenizer(row["prompt"] + row["chosen"])["input_ids"][:LENGTH]
        text = tokenizer.decode(ids)
        same = tokenizer(text)["input_ids"] == ids and len(ids) == LENGTH
        if same and text not in seen:
            seen.add(text)
            kept.append({"prompt": text})
    pairs.write(folder / "prompts.jsonl", kept)


def check_equal(folder: Path) -> dict:
    """One step on the same samples."""
    few = {"steps": 2, "warmup": 1}
    trl = run("trl", folder, SWEEP["trl"][0] | few | {"save": True})
    exact = SWEEP["ours"][0] | {"steps": 1, "warmup": 1, "replay": True}
    ours = run("ours", folder, exact)
    with np.load(folder / "first.npz") as file:
        mask = file["completion_mask"] > 0
        logp = float(file["logps"][mask].mean())
    gaps = {
        "logp": abs(ours["logps"][0] - logp) / abs(logp),
        "grad_norm": abs(ours["grad_norms"][0] / trl["grad_norms"][0] - 1),
        "loss": abs(ours["losses"][0] - trl["losses"][0]),
    }
    print(f"on the same samples, ours beside TRL's: {gaps}", flush=True)
    if max(gaps.values()) > 1e-3:
        raise RuntimeError(f"the sides differ: {ours}, {trl}, log-prob {logp}")
    return gaps


def compare(folder: Path, repeats: int, quick: bool) -> dict:
    """Sweep, then both sides in turn; medians."""
    timed = {"warmup": 2, "steps": 3 if quick else 5}
    chosen = {}
    for side, options in SWEEP.items():
        rates = []
        for option in options[: 1 if quick else None]:
            try:
                found = run(side, folder, option | timed)["seconds"]
            except RuntimeError as error:
                # A setting that the peer refuses is no setting of it.
                found = float("inf")
                print(str(error).strip().splitlines()[-1][:150])
            rates.append(found)
            print(f"  {side:<5}{found:8.2f} CPU-s a step  {option}", flush=True)
        chosen[side] = options[rates.index(min(rates))] | timed
    results = {side: [] for side in SWEEP}
    for _ in range(repeats):
        for side in SWEEP:
            results[side].append(run(side, folder, chosen[side]))
    mid = {
        s: statistics.median(r["seconds"] for r in some) for s, some in results.items()
    }
    return {
        "name": f"{PROMPTS} prompts of {LENGTH} x {GROUP} answers of {NEW} tokens",
        "unit": "CPU seconds a step; the ratio is TRL's over ours",
        "ours": mid["ours"],
        "peer": mid["trl"],
        "ratio": mid["trl"] / mid["ours"],
        "settings": chosen,
        "repeats": {s: [r["seconds"] for r in some] for s, some in results.items()},
        "tokens": {
            s: statistics.mean(some[0]["tokens"]) for s, some in results.items()
        },
        "peak_mib": {s: some[0]["peak_mib"] for s, some in results.items()},
    }


def main() -> None:
    """Build, check, sweep, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no sweep, one repeat")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".cache/grpo_vs_trl"))
    options = parser.parse_args()
    build(options.work)
    equality = check_equal(options.work)
    case = compare(options.work, 1 if options.quick else options.repeats, options.quick)
    for side, settings in case["settings"].items():
        print(f"{side}: {settings}, {case['tokens'][side]:.1f} tokens an answer")
    print(
        "| GRPO step | TRL CPU-s | ours CPU-s | ratio | peak memory TRL / ours |\n"
        "|---|---|---|---|---|\n"
        f"| {case['name']} | {case['peer']:.2f} | {case['ours']:.2f} "
        f"| **{case['ratio']:.1f}x** "
        f"| {case['peak_mib']['trl']} / {case['peak_mib']['ours']} MiB |"
    )
    if options.json:
        report = {"equality": equality, "cases": [case]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
