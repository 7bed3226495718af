"""DPO on one NVIDIA card: tokens a second and MFU, ours beside TRL's DPOTrainer.

python benchmarks/gpu_dpo.py [--size 1b|3b] [--json FILE] [--repeats 3] [--only even]
python benchmarks/gpu_dpo.py --tiny        the same script in little, on a CPU

A Llama of random weights, float32 at rest and bfloat16 in computing (or --weights
bfloat16 for both), AdamW, the reference's log-probs computed beforehand on both sides.
Pairs have one length, so that no side pads: `even`, and `shared`, whose long prompt ours
computes once. Before anything is timed, first loss and log-probs in float32 must agree to
1e-3. Each run is a process of its own; sides take turns; figures are medians of seconds on
the wall, without warm-up. Tokens count a prompt once, for both sides; so does MFU, whose
FLOPs are the model's (DESIGN 10). `peer_mfu_as_run` counts TRL's second pass over prompts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import dpo_vs_trl
import numpy as np
import pairs

from alanything_jax.models.config import DecoderConfig
from alanything_jax.planning import flops

HERE = Path(__file__).parent
# Llama 3.2's shapes: vocabulary, width, feed-forward, layers, heads, key heads, head.
SIZES = {
    "1b": (128256, 2048, 8192, 16, 32, 8, 64),
    "3b": (128256, 3072, 8192, 28, 24, 8, 128),
    "tiny": (256, 32, 64, 2, 4, 2, 8),
}
# Tokens of prompt, and of each answer with its end of turn.
CASES = {"even": (256, 256), "shared": (1536, 128)}
TINY_CASES = {"even": (16, 16)}
BACKENDS = ("cudnn", "blockwise", "dense")  # `flash` is a TPU's.
PEER = [
    {"attention": "sdpa"},
    {"attention": "flash_attention_2"},
    {"attention": "sdpa", "compile": True},
    {"attention": "sdpa", "liger": True},
]
# NVIDIA's data sheets: dense bfloat16, TFLOP/s. The first name that fits counts.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "A10G": 70,
    "A10": 125,
    "L4": 121,
}
NO_CARD = """no NVIDIA card here (nvidia-smi finds none): nothing was measured.

On a card this builds a Llama of 1.2B (--size 1b, from 40 GB) or 3.2B (3b, from 80 GB)
random weights, shows that one DPO step of ours and of TRL's is the same in float32, and
measures tokens/s and MFU of both in bfloat16, ours with each attention backend that runs.
It needs 'jax[cuda13]' (or cuda12) beside this package, and for TRL's side a build of torch
with CUDA, trl, accelerate and datasets; flash-attn and liger-kernel are tried if there.
  pip install -e '.[peers]' 'jax[cuda13]'; python benchmarks/gpu_dpo.py --json gpu.json
`--tiny` runs this script in little without a card."""


def run(side: str, folder: Path, name: str, settings: dict, tiny: bool = False) -> dict:
    """One process of one side.

    Raises RuntimeError: it failed; ends with the last lines it said.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if tiny:
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "XLA_FLAGS": "",
            "OMP_NUM_THREADS": "1",
        }
    if settings.get("dtype") == "float32":
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # No TF32, as in torch.
    command = [
        sys.executable,
        HERE / f"run_{side}.py",
        folder,
        name,
        json.dumps(settings),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} {settings}:\n{done.stderr.strip()[-800:]}")
    out = json.loads(done.stdout.strip().splitlines()[-1])
    return out | {"rate": out["pairs"] / out["train_s"]}


def build(folder: Path, size: str, cases: dict, groups: int, steps: int) -> None:
    """`model/`, per case a file of pairs, and one of a single step, to be checked."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab, width, inner, layers, heads, key_heads, head = SIZES[size]
    config = pairs.CONFIG | dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head,
        max_position_embeddings=4096,
    )
    # A word a token, so that texts have the lengths wanted.
    words = ["<|end|>", "<|pad|>", "<|other|>"]
    words += [f"w{n}" for n in range(min(vocab, 8192) - 3)]
    ids = {word: n for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<|other|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save_model(folder / "model", tokenizer, config, "bfloat16")
    rng = np.random.default_rng(0)

    def text(count):
        return " ".join(rng.choice(words[3:], count))

    def rows(prompt, answer, count):
        return [
            {
                "prompt": text(prompt),
                "chosen": " " + text(answer - 1),
                "rejected": " " + text(answer - 1),
            }
            for _ in range(count)
        ]

    for name, lengths in cases.items():
        pairs.write(folder / f"{name}.jsonl", rows(*lengths, groups * steps))
        pairs.write(folder / f"{name}_few.jsonl", rows(*lengths, groups))


def settings_of(options: argparse.Namespace, lengths: tuple[int, int]) -> dict:
    """What each side is told for one case."""
    prompt, answer = lengths
    both = {
        "groups": options.groups,
        "warmup": 1 if options.tiny else 4,
        "steps": options.steps,
        "weights": options.weights,
        "clock": "perf_counter",
        "device": "cpu" if options.tiny else "gpu",
    }
    fast = not options.tiny
    return {
        "trl": both
        | {
            "batch": options.batch,
            "reference": "cached",
            "grouped": False,
            "bf16": fast and options.weights == "float32",
            "max_length": prompt + answer,
        },
        "ours": both
        | {
            "rows_per_microbatch": options.batch,
            "row_tokens": prompt + 2 * answer,
            "block": 128 if fast else 16,
            "head_chunk": 1024,
            "head_block": 16384,
            "remat": "none",
            "dtype": "bfloat16" if fast else "float32",
        },
    }


def check(options: argparse.Namespace, name: str, both: dict) -> dict | None:
    """Both sides' first step in float32; None, and why, where TRL does not run."""
    name = f"{name}_few"
    # A pair at a time: numbers of 32 bits take more room.
    ours = {"dtype": "float32", "attention": "blockwise", "rows_per_microbatch": 1}
    trl = {"bf16": False, "batch": 1}
    short = {"steps": 2, "warmup": 1, "weights": "float32"}
    ours = run("ours", options.work, name, both["ours"] | short | ours, options.tiny)
    trl = attempt(options, name, "trl", both["trl"] | short | trl)
    if trl is None:
        print("so TRL's side is not measured.\n")
        return None
    return dpo_vs_trl.gaps(trl, ours, 1)


def attempt(options: argparse.Namespace, name: str, side: str, settings: dict):
    """A run, or None where these settings do not run here, and why."""
    try:
        return run(side, options.work, name, settings, options.tiny)
    except RuntimeError as error:
        print(f"does not run here, left out: {error}\n", flush=True)
        return None


def best_peer(options: argparse.Namespace, name: str, settings: dict) -> dict:
    """TRL's settings with most pairs a second, of those that run."""
    tried = [settings | option for option in PEER[: 1 if options.tiny else None]]
    if len(tried) == 1:
        return tried[0]
    rates = []
    for option, some in zip(PEER, tried, strict=True):
        result = attempt(options, name, "trl", some | {"steps": some["warmup"] + 2})
        rates.append(result["rate"] if result else 0.0)
        print(f"  {name} TRL {rates[-1]:.3f} pairs/s {option}", flush=True)
    return tried[rates.index(max(rates))]


def pair_flops(size: str, lengths: tuple[int, int]) -> tuple[int, float, float]:
    """Of one pair: tokens, the model's FLOPs, and those with the prompt twice."""
    vocab, width, inner, layers, heads, key_heads, head = SIZES[size]
    cfg = DecoderConfig(vocab, width, layers, heads, key_heads, head, inner)
    layer = width * head * 2 * (heads + key_heads) + 3 * width * inner + 2 * width
    number = vocab * width + layers * layer + width
    prompt, answer = lengths
    before, whole = (n * (n + 1) // 2 for n in (prompt, prompt + answer))
    tokens = prompt + 2 * answer
    once = flops.of_model(cfg, number, tokens, 2 * whole - before, 6)
    twice = flops.of_model(cfg, number, tokens + prompt, 2 * whole, 6)
    return tokens, once, twice


def compare(options: argparse.Namespace, name: str, lengths: tuple[int, int]) -> list:
    """The check, TRL's sweep, then all in turn `repeats` times; a case each backend."""
    both = settings_of(options, lengths)
    equality = check(options, name, both)
    backends = BACKENDS[: 2 if options.tiny else None]
    running = [("ours", both["ours"] | {"attention": some}) for some in backends]
    if equality:
        running.append(("trl", best_peer(options, name, both["trl"])))
    results = [[] for _ in running]
    for _ in range(options.repeats):
        for (side, settings), some in zip(running, results, strict=True):
            if None not in some:
                some.append(attempt(options, name, side, settings))
    kept = [pair for pair in zip(running, results, strict=True) if None not in pair[1]]
    if not kept or kept[0][0][0] != "ours":
        raise RuntimeError("no attention backend of ours runs here; why is said above.")
    running, results = zip(*kept, strict=True)
    tokens, once, twice = pair_flops(options.size, lengths)
    rates = [statistics.median(r["rate"] for r in some) for some in results]
    peer = rates.pop() if running[-1][0] == "trl" else None

    def mfu(rate, work):
        known = rate is not None and options.peak
        return rate * work / (options.peak * 1e12) if known else None

    return [
        {
            "name": f"{name}/{settings['attention']}",
            "unit": "tokens a second, prompts counted once",
            "ours": rate * tokens,
            "peer": peer and peer * tokens,
            "ratio": peer and rate / peer,
            "mfu": mfu(rate, once),
            "peer_mfu": mfu(peer, once),
            "peer_mfu_as_run": mfu(peer, twice),
            "card_peak_mib": some[0]["card_peak_mib"],
            "peer_card_peak_mib": peer and results[-1][0]["card_peak_mib"],
            "equality": equality,
            "settings": settings,
            "peer_settings": running[-1][1] if peer else None,
            "versions": some[0]["versions"]
            | (results[-1][0]["versions"] if peer else {}),
            "repeats": [r["rate"] * tokens for r in some],
            "peer_repeats": [r["rate"] * tokens for r in results[-1]] if peer else [],
        }
        for (_, settings), some, rate in zip(running, results, rates, strict=False)
    ]


def card(tiny: bool) -> str | None:
    """Name, memory and driver of the first card; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tiny or tool is None:
        return "no card, CPU" if tiny else None
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    done = subprocess.run([tool, *query], capture_output=True, text=True)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None


def line(case: dict) -> str:
    """A case as a row of the table."""

    def share(value):
        return "unknown" if value is None else f"{value:.1%}"

    peer, ratio = case["peer"], case["ratio"]
    return (
        f"| {case['name']} | {'not run' if peer is None else f'{peer:.0f}'} "
        f"| {case['ours']:.0f} | {'-' if ratio is None else f'**{ratio:.2f}x**'} "
        f"| {share(case['peer_mfu'])} ({share(case['peer_mfu_as_run'])}) "
        f"| {share(case['mfu'])} "
        f"| {case['peer_card_peak_mib'] or '-'} / {case['card_peak_mib']} MiB |"
    )


def main() -> None:
    """Build, check, sweep, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("1b", "3b"), default="1b")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--groups", type=int, default=16, help="pairs a step")
    parser.add_argument("--batch", type=int, default=4, help="pairs at a time")
    parser.add_argument("--steps", type=int, default=16, help="four of them warm-up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append", help="these cases")
    parser.add_argument("--peak", type=float, help="the card's dense bf16 TFLOP/s")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--work", type=Path, default=Path(".cache/gpu_dpo"))
    parser.add_argument("--tiny", action="store_true", help="in little, on a CPU")
    options = parser.parse_args()
    cases = {name: CASES[name] for name in options.only or CASES}
    if options.tiny:
        cases, options.size, options.repeats = TINY_CASES, "tiny", 1
        options.groups, options.batch, options.steps = 4, 1, 3
    name = card(options.tiny)
    if name is None:
        print(NO_CARD)
        return
    if options.peak is None:
        known = (v for k, v in PEAKS.items() if re.search(rf"\b{k}\b", name))
        options.peak = next(known, None)
    today = datetime.date.today().isoformat()
    print(f"{name}; {today}; peak {options.peak} TFLOP/s; {vars(options)}", flush=True)
    build(options.work, options.size, cases, options.groups, options.steps)
    try:
        measured = [x for n, size in cases.items() for x in compare(options, n, size)]
    except RuntimeError as error:
        sys.exit(str(error))
    for case in measured:
        print(f"{case['name']}: ours {case['settings']}, TRL {case['peer_settings']}")
    print(f"versions {measured[0]['versions']}\n")
    print(
        "| pairs/attention | TRL tokens/s | ours | ratio | MFU, TRL (as run) | MFU, ours "
        "| card memory TRL / ours |\n|---|---|---|---|---|---|---|"
    )
    print("\n".join(map(line, measured)))
    if options.json:
        report = {"card": name, "date": today, "peak_tflops": options.peak}
        report |= {"size": options.size, "cases": measured}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
