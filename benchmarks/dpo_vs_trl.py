"""DPO: TRL's DPOTrainer and ours on the same model files and pairs, in turn.

python benchmarks/dpo_vs_trl.py [--quick] [--only chat] [--json FILE] [--repeats 3] [--work DIR]

Each side runs in its own process pinned to one core with one thread; the sides take
turns; figures are medians of CPU seconds (user + system of the process), with compiling
and `warmup` steps left out and the reference pass counted. Both sides first choose
among settings (the sweep, printed), then run with their best. Before anything is timed,
losses and log-probs of both sides on the same eight pairs must agree to 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pairs

HERE = Path(__file__).parent
CASES = ("chat", "long")
BASE = {
    "trl": {"groups": 8, "batch": 8, "warmup": 2, "threads": 1, "bf16": True},
    "ours": {
        "groups": 8,
        "warmup": 2,
        "rows_per_microbatch": 1,
        "head_chunk": 256,
        "head_block": 512,
        "remat": "none",
    },
}
SWEEP = {
    "trl": [
        {"reference": "live", "grouped": True},
        {"reference": "cached", "grouped": True},
        {"reference": "live", "grouped": True, "bf16": False, "weights": "bfloat16"},
    ],
    "ours": [
        {"row_tokens": 1792, "block": 64, "dtype": "mixed"},
        {"row_tokens": 2048, "block": 64, "dtype": "mixed"},
        {"row_tokens": 2048, "block": 64, "dtype": "float32"},
    ],
}
# Multiply-adds per token and parameter: forward 1, backward 2; the embedding is a lookup.
BODY = 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 768)
HEAD = 256 * 8192


def run(side: str, folder: Path, name: str, settings: dict) -> dict:
    """One process of one side; its rates."""
    out = pinned(f"run_{side}.py", folder, name, settings)
    out["train"] = out["pairs"] / out["train_s"]
    out["all"] = 1 / (1 / out["train"] + out["reference_s_per_pair"])
    return out


def pinned(script: str, *arguments: object) -> dict:
    """A script of this folder on the first core we may use, with one thread.

    The last argument is its settings; the last line that it prints is JSON.
    """
    *places, settings = arguments
    core = min(os.sched_getaffinity(0))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Huge pages for large buffers: fewer page faults, for both sides alike.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    done = subprocess.run(
        [sys.executable, HERE / script, *places, json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    if done.returncode:
        raise RuntimeError(f"{script} {settings} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_equal(folder: Path) -> dict:
    """Losses of three steps and log-probs of the first, on the same eight pairs."""
    options = {"steps": 3, "warmup": 1}
    trl = run(
        "trl",
        folder,
        "few",
        BASE["trl"]
        | options
        | {"reference": "cached", "grouped": False, "bf16": False},
    )
    ours = run("ours", folder, "few", BASE["ours"] | SWEEP["ours"][-1] | options)
    return gaps(trl, ours, 3)


def gaps(trl: dict, ours: dict, steps: int) -> dict:
    """How far losses of the first steps and log-probs of the very first lie apart.

    Raises RuntimeError: further than 1e-3.
    """
    loss_gap = max(
        abs(a - b)
        for a, b in zip(trl["losses"][:steps], ours["losses"][:steps], strict=True)
    )
    logp_gap = max(
        abs(a - b) / abs(a)
        for a, b in zip(trl["logps"][0], ours["logps"][0], strict=True)
    )
    print(f"losses    TRL {trl['losses']}\n          ours {ours['losses']}")
    print(f"log-probs TRL {trl['logps'][0]}\n          ours {ours['logps'][0]}")
    if loss_gap > 1e-3 or logp_gap > 1e-3:
        raise RuntimeError(
            f"the sides differ: losses by {loss_gap}, log-probs by {logp_gap}"
        )
    print(f"equal: losses to {loss_gap:.1e}, log-probs to {logp_gap:.1e} (relative)\n")
    return {"loss_gap": loss_gap, "logp_gap": logp_gap}


def best(side: str, folder: Path, name: str, quick: bool) -> dict:
    """The settings with most pairs per CPU second over eight steps, all counted."""
    options = SWEEP[side][: 1 if quick else None]
    if len(options) == 1:
        return BASE[side] | options[0]
    rates = []
    for option in options:
        short = BASE[side] | option | {"steps": 8}
        rates.append(run(side, folder, name, short)["all"])
        print(f"  {name:<5}{side:<5}{rates[-1]:7.2f} pairs/CPU-s  {option}", flush=True)
    return BASE[side] | options[rates.index(max(rates))]


def flop_seconds(result: dict, gflops: float) -> float:
    """CPU seconds a pair would take if matmuls ran at the machine's peak and no more."""
    body = 2 * BODY * result["tokens_per_pair"]
    head = 2 * HEAD * result["scored_per_pair"]
    return (3 + 1) * (body + head) / (gflops * 1e9)


def peak_gflops() -> float:
    """Best float32 matmul rate of one core, by numpy."""
    code = (
        "import numpy as np, time\n"
        "a = np.ones((1024, 1024), np.float32)\n"
        "def once():\n"
        "    t = time.process_time(); a @ a; return time.process_time() - t\n"
        "print(2 * 1024**3 / min(once() for _ in range(30)) / 1e9)"
    )
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        check=True,
    )
    return float(done.stdout)


def compare(folder: Path, name: str, repeats: int, quick: bool, gflops: float) -> dict:
    """Sweep, then both sides in turn `repeats` times; medians."""
    chosen = {side: best(side, folder, name, quick) for side in SWEEP}
    results = {side: [] for side in SWEEP}
    for _ in range(repeats):
        for side in SWEEP:
            results[side].append(run(side, folder, name, chosen[side]))
    sides = {
        side: {
            key: statistics.median(r[key] for r in some)
            for key in ("train", "all", "peak_mib")
        }
        for side, some in results.items()
    }
    ours = results["ours"][0]
    rate = sides["ours"]["all"]
    return {
        "name": name,
        "unit": "pairs per CPU second, reference pass counted",
        "ours": rate,
        "peer": sides["trl"]["all"],
        "ratio": rate / sides["trl"]["all"],
        "ratio_train": sides["ours"]["train"] / sides["trl"]["train"],
        "sides": sides,
        "settings": chosen,
        "repeats": {side: [r["all"] for r in some] for side, some in results.items()},
        "tokens_per_pair": ours["tokens_per_pair"],
        "scored_per_pair": ours["scored_per_pair"],
        "fill": ours["fill"],
        "useful_tokens_per_cpu_s": ours["tokens_per_pair"] * rate,
        "flop_limit_share": flop_seconds(ours, gflops) * rate,
    }


def table(cases: list[dict]) -> str:
    """The README's table."""
    lines = [
        "| pairs | TRL pairs/CPU-s (training; with reference) | ours | ratio | useful "
        "tokens/CPU-s, ours | peak memory TRL / ours | of the FLOP limit, ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in cases:
        trl, ours = r["sides"]["trl"], r["sides"]["ours"]
        lines.append(
            f"| {r['name']}: {r['tokens_per_pair']:.0f} tokens, "
            f"{r['scored_per_pair']:.0f} scored "
            f"| {trl['train']:.2f}; {trl['all']:.2f} | {ours['train']:.2f}; {ours['all']:.2f} "
            f"| {r['ratio_train']:.1f}x; **{r['ratio']:.1f}x** "
            f"| {r['useful_tokens_per_cpu_s']:.0f} "
            f"| {trl['peak_mib']:.0f} / {ours['peak_mib']:.0f} MiB "
            f"| {r['flop_limit_share']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Build, check, sweep, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no sweep, one repeat")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append", help="these cases")
    parser.add_argument("--work", type=Path, default=Path(".cache/dpo_vs_trl"))
    options = parser.parse_args()
    pairs.build(options.work, 64 if options.quick else 128)
    equality, gflops = check_equal(options.work), peak_gflops()
    repeats = 1 if options.quick else options.repeats
    cases = [
        compare(options.work, name, repeats, options.quick, gflops)
        for name in options.only or CASES
    ]
    for case in cases:
        for side, settings in case["settings"].items():
            print(f"{case['name']} {side}: {settings}")
    print(f"one core's matmul peak: {gflops:.0f} GFLOP/s\n")
    print(table(cases))
    if options.json:
        report = {"equality": equality, "gflops": gflops, "cases": cases}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
