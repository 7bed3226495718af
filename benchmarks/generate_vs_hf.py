"""Generation: transformers' `generate` and ours, the same model files and prompts, in turn.

python benchmarks/generate_vs_hf.py [--only fixed] [--json FILE] [--repeats 3] [--tiny]

fixed: 32 prompts of 64 tokens, 128 new tokens each. mixed: 96 such prompts, answers of 16
to 256 new tokens; transformers decodes batches of 32, and ours has 32 slots. How long an
answer will be is not known to either side; in `mixed known` it is, and transformers may
sort by it, while ours begins with the longest. Greedily, and sampled from the whole softmax.

Each side runs in its own process pinned to one core with one thread; the sides take turns;
figures are medians of new tokens per CPU second (user + system of the process), with
loading, compiling and one whole warm-up left out. Each side first chooses among settings
(the sweep, printed). Greedy tokens of both sides in float32 must agree before that: up to
the first where the best two logits are nearer than 1e-3, which are counted and printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pairs

FULL = {"batch": 32, "prompt": 64, "new": 128, "requests": 96, "low": 16, "high": 256}
TINY = {"batch": 4, "prompt": 16, "new": 16, "requests": 10, "low": 4, "high": 24}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
CASES = ("fixed", "mixed", "mixed known", "fixed sampled", "mixed sampled")
TYPES = ("float32", "bfloat16")


def settings_of(side: str, case: str) -> list[dict]:
    """The sweep of a side."""
    if side == "ours":
        return [{"dtype": dtype} for dtype in TYPES]
    orders = ("given", "sorted") if "known" in case else ("given",)
    return [
        {"cache": cache, "dtype": dtype, "order": order}
        for cache, dtype, order in itertools.product(
            ("dynamic", "static"), TYPES, orders
        )
    ]


def requests(case: str, sizes: dict) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [n, S] and the number of new tokens of each [n]."""
    rng = np.random.default_rng(0)
    mixed = case.startswith("mixed")
    count = sizes["requests" if mixed else "batch"]
    prompts = rng.integers(2, pairs.CONFIG["vocab_size"], (count, sizes["prompt"]))
    if not mixed:
        return prompts, np.full(count, sizes["new"])
    return prompts, rng.integers(sizes["low"], sizes["high"] + 1, count)


def build(folder: Path, tiny: bool) -> None:
    """A random Llama whose logits are spread enough to have few near-ties."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = pairs.CONFIG | (SMALL if tiny else {}) | {"initializer_range": 0.06}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.save_pretrained(folder)


def run_peer(folder: str, case: str, setting: dict, sizes: dict):
    """A function that generates all of it once, and gives tokens of every request."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, setting["dtype"])
    ).eval()
    model.generation_config.eos_token_id = None
    prompts, counts = requests(case, sizes)
    order = np.arange(len(counts))
    if setting["order"] == "sorted":
        order = np.argsort(counts, kind="stable")
    choice = {"do_sample": False}
    if case.endswith("sampled"):
        choice = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    # What torch.compile does to static caches takes minutes and was slower (78 s, 0.7x).
    choice |= {"cache_implementation": setting["cache"], "disable_compile": True}

    @torch.no_grad()
    def generate():
        out = [None] * len(counts)
        for first in range(0, len(order), sizes["batch"]):
            some = order[first : first + sizes["batch"]]
            ids = torch.tensor(prompts[some])
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=int(counts[some].max()),
                pad_token_id=1,
                **choice,
            )
            for n, row in zip(some, made[:, ids.shape[1] :].tolist(), strict=True):
                out[n] = row[: counts[n]]
        return out

    return generate


def run_ours(folder: str, case: str, setting: dict, sizes: dict):
    """As `run_peer`."""
    from alanything_jax import hub
    from alanything_jax.generation.decode import generate_tokens
    from alanything_jax.generation.sampler import Sampling

    bundle = hub.load(folder, dtype=setting["dtype"])
    prompts, counts = requests(case, sizes)
    unknown = case.startswith("mixed") and "known" not in case

    def over(row, tokens):
        return counts[row] if len(tokens) >= counts[row] else None

    def generate():
        done = generate_tokens(
            bundle.params,
            bundle.model.config,
            list(prompts),
            max_new_tokens=int(max(counts)) if unknown else counts,
            stop=over if unknown else None,
            slots=sizes["batch"],
            sampling=Sampling(1.0 if case.endswith("sampled") else 0.0),
        )
        return [completion.tokens.tolist() for completion in done]

    return generate


def measure(side: str, folder: str, case: str, setting: dict, sizes: dict) -> dict:
    """In this process: tokens per CPU second after a warm-up, and what was said."""
    generate = {"peer": run_peer, "ours": run_ours}[side](folder, case, setting, sizes)
    first = generate()
    begin = time.process_time()
    out = generate()
    spent = time.process_time() - begin
    count = sum(map(len, out))
    assert [len(row) for row in out] == requests(case, sizes)[1].tolist()
    return {"tokens": count, "rate": count / spent, "said": first}


def run(side: str, folder: Path, case: str, setting: dict, sizes: dict) -> dict:
    """`measure` in a process of its own, pinned to one core we may use."""
    core = max(os.sched_getaffinity(0))
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Huge pages for large buffers: fewer page faults, for both sides alike.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    task = json.dumps([side, str(folder), case, setting, sizes])
    done = subprocess.run(
        [sys.executable, __file__, "--measure", task],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    if done.returncode:
        raise RuntimeError(f"{side} {setting} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def near_ties(folder: Path, prompts: np.ndarray, peer: list, ours: list) -> int:
    """How many rows part at a near-tie; RuntimeError where one parts elsewhere."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    count = 0
    for n, (a, b) in enumerate(zip(peer, ours, strict=True)):
        if a == b:
            continue
        at = next(
            i for i, pair in enumerate(zip(a, b, strict=True)) if len({*pair}) > 1
        )
        row = torch.tensor([prompts[n].tolist() + a[:at]])
        with torch.no_grad():
            logits = model(row).logits[0, -1]
        gap = float(logits.max() - logits[b[at]])
        print(
            f"row {n} parts at token {at}: {a[at]} or {b[at]}, logits {gap:.1e} apart"
        )
        if gap > 1e-3:
            raise RuntimeError(f"the sides differ: row {n}, token {at}, by {gap}")
        count += 1
    return count


def check_equal(folder: Path, sizes: dict) -> dict:
    """Greedy tokens of both sides, float32, of the fixed case."""
    setting = {"dtype": "float32", "cache": "dynamic", "order": "given"}
    peer, ours = (
        run(side, folder, "fixed", setting, sizes)["said"] for side in ("peer", "ours")
    )
    parted = near_ties(folder, requests("fixed", sizes)[0], peer, ours)
    kinds = len(set(itertools.chain(*ours)))
    print(f"first tokens, transformers {[row[:4] for row in peer[:3]]}")
    print(f"                      ours {[row[:4] for row in ours[:3]]}")
    print(f"{len(peer) - parted} of {len(peer)} rows equal, {kinds} different tokens\n")
    return {"rows": len(peer), "parted_at_near_ties": parted, "kinds": kinds}


def compare(folder: Path, case: str, sizes: dict, repeats: int) -> dict:
    """Sweep, then both sides in turn; medians."""
    chosen = {}
    for side in ("peer", "ours"):
        rates = {}
        for setting in settings_of(side, case):
            rate = run(side, folder, case, setting, sizes)["rate"]
            rates[json.dumps(setting)] = rate
            print(
                f"  {case:<14}{side:<5}{rate:8.0f} tokens/CPU-s  {setting}", flush=True
            )
        chosen[side] = json.loads(max(rates, key=rates.get))
    found = {"peer": [], "ours": []}
    for _ in range(repeats):
        for side, rates in found.items():
            made = run(side, folder, case, chosen[side], sizes)
            rates.append(made["rate"])
    ours, peer = (statistics.median(found[side]) for side in ("ours", "peer"))
    return {
        "name": case,
        "unit": "new tokens per CPU second, one core",
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "settings": chosen,
        "repeats": found,
        "tokens": made["tokens"],
    }


def table(cases: list[dict]) -> str:
    """The README's table."""
    lines = [
        "| case | new tokens | transformers tokens/CPU-s (best) | ours | ratio |",
        "|---|---|---|---|---|",
    ]
    for r in cases:
        peer = ", ".join(r["settings"]["peer"].values())
        lines.append(
            f"| {r['name']} | {r['tokens']} | {r['peer']:.0f} ({peer}) "
            f"| {r['ours']:.0f} ({r['settings']['ours']['dtype']}) "
            f"| **{r['ratio']:.1f}x** |"
        )
    return "\n".join(lines)


def main() -> None:
    """Build, check, sweep, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, one repeat")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append", help="these cases")
    parser.add_argument("--work", type=Path, default=Path(".cache/generate_vs_hf"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    sizes = TINY if options.tiny else FULL
    folder = options.work / ("tiny" if options.tiny else "model")
    build(folder, options.tiny)
    equality = check_equal(folder, sizes)
    repeats = 1 if options.tiny else options.repeats
    cases = [compare(folder, c, sizes, repeats) for c in options.only or CASES]
    print("\n" + table(cases))
    if options.json:
        report = {"equality": equality, "cases": cases}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
