"""Input at a pod's speed: what one core packs and encodes, against what chips eat.

python benchmarks/input_pipeline.py [--groups 2048] [--pictures 96] [--repeats 5]
                                    [--workers 0] [--json FILE]

    text      a run encodes its records once, before its first step; packing is left
    codes     likewise: media of all kinds were made codes
    pictures  JPEGs of 448 x 448 for Qwen2.5-VL: kept as files, so that each is decoded,
              resized and cut into patches again whenever its row is packed

Packing runs ahead of need in Grain's threads, or in `--workers` processes (data.workers);
all is timed on one pinned core, CPU seconds of it and its children, medians. The appetite
is the planned recipes' (estimates of `alanything plan`, docs/plans): tokens a second and
chip, times the chips of a host. Said is how many cores a host needs so that no step waits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from alanything_jax.data import packing, pipeline  # noqa: E402
from alanything_jax.data.groups import Data, load_groups  # noqa: E402
from alanything_jax.hub.source import playground_bundle, tiny_bundle  # noqa: E402
from alanything_jax.hub.tiny import tiny_tokenizer  # noqa: E402
from alanything_jax.models.families import family_of  # noqa: E402
from alanything_jax.training.prepare import media_plans  # noqa: E402
from alanything_jax.training.step import Compute  # noqa: E402

ROOT = Path(__file__).parents[1]
# Cores for each chip, of the machine types that Google gives them; chips of a host.
CORES, HOST = {"v5e": 28, "v5p": 52, "v6e": 45}, 4
COMPUTE = Compute(row_tokens=4096, rows_per_microbatch=4)
SIDE = 448


def timed(call):
    """CPU seconds of a call, its processes' too, and what it gave."""
    start = sum(os.times()[:4])
    out = call()
    return sum(os.times()[:4]) - start, out


def text(folder, count):
    """Tokenizer, coder, encoders and data of pairs in words."""
    del folder, count
    return tiny_bundle("llama").tokenizer, None, (), "generated"


def codes(folder, count):
    """Those of pairs in words, pictures, tunes and clips, as codes."""
    del folder
    bundle = playground_bundle("48x2")
    return bundle.tokenizer, bundle.coder, (), f"playground:pairs/{count}"


def pictures(folder, count):
    """Those of pairs about pictures, as Qwen2.5-VL-3B reads them; the tokenizer is tiny."""
    rng, rows = np.random.default_rng(0), []
    for n in range(count):
        coarse = rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE))
        picture.save(folder / f"{n}.jpg", quality=90)
        asked = [{"type": "image", "image": f"{n}.jpg"}]
        asked.append(
            {"type": "text", "text": "What do you see, and where does it lie?"}
        )
        answers = ("Squares of many colours, blurred.", "A dog on a lawn, running.")
        row = {"prompt": [{"role": "user", "content": asked}]}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            row[name] = [{"role": "assistant", "content": answer}]
        rows.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    written = ROOT / "configs" / "models" / "qwen2_5_vl_3b" / "config.json"
    tokenizer, ids = tiny_tokenizer("qwen2_5_vl"), tiny_bundle("qwen2_5_vl").hf_config
    config = json.loads(written.read_text())
    config |= {name: ids[name] for name in ids if name.endswith("_token_id")}
    family = family_of("qwen2_5_vl")
    whole = family.config(config)
    coder = family.coder(tokenizer, whole, config, {})
    return tokenizer, coder, whole, str(folder / "rows.jsonl")


def encode(make, count: int, folder: Path):
    """(groups, CPU seconds, layout's media) of a source, from records to token ids."""
    tokenizer, coder, config, path = make(folder, count)
    data = Data(path, max_group_tokens=COMPUTE.row_tokens)
    took, (groups, _) = timed(
        lambda: load_groups(data, tokenizer, 2, None, lambda line: None, coder)
    )
    return groups, took, media_plans(groups, COMPUTE, config) if config else ()


def pack(groups, media, repeats: int, workers: int):
    """(CPU seconds, groups, tokens) of packing them into steps of full rows, by Grain."""
    mean = sum(map(packing.group_length, groups)) / len(groups)
    rows, length = COMPUTE.rows_per_microbatch, COMPUTE.row_tokens
    per_step = min(len(groups), max(1, int(0.9 * rows * length / mean)))
    layout = packing.Layout(rows, length, per_step, 2, media=media)
    source = pipeline.StepSource(groups, layout, per_step, workers=workers)
    times, tokens = [], 0
    for _ in range(repeats):
        # Starting threads and processes is no part of it: what more steps cost is.
        few, _ = timed(lambda: list(source.steps(0, 4)))
        many, made = timed(lambda: list(source.steps(0, 20)))
        times.append(many - few)
        tokens = sum(step.tokens for step in made[4:])
    return statistics.median(times), 16 * per_step, tokens


def appetites(kind: str):
    """Of each generation the plan whose host eats most: its name, generation, chips of a
    host, tokens a second. Recipes that see are fed pictures, the others text and codes."""
    found = {}
    for path in sorted((ROOT / "docs" / "plans").glob("*.json")):
        plan = json.loads(path.read_text())
        generation = plan["topology"].split(":")[0]
        sees, rate = "_vl_" in plan["recipe"], plan["tokens_per_s_per_chip"]
        if generation in CORES and rate and sees == (kind == "pictures"):
            chips = min(HOST, plan["chips"])
            eaten = (chips * rate, path.stem, chips)
            found[generation] = max(found.get(generation, eaten), eaten)
    for generation, (appetite, name, chips) in found.items():
        yield name, generation, chips, appetite


def main() -> None:
    """Measure, compare with every plan, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=2048)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for make in (text, codes, pictures):
        kind = make.__name__
        count = options.pictures if kind == "pictures" else options.groups
        with tempfile.TemporaryDirectory() as folder:
            groups, encoding, media = encode(make, count, Path(folder))
            how = (media, options.repeats, options.workers)
            seconds, packed, tokens = pack(groups, *how)
        rate = tokens / seconds
        print(
            f"{kind}: {len(groups) / encoding:,.0f} groups/s encoded once, "
            f"{packed / seconds:,.0f} groups/s ({rate:,.0f} tokens/s) packed, a core; "
            f"{tokens / packed:.0f} tokens a group"
        )
        for name, generation, chips, appetite in appetites(kind):
            cores = CORES[generation] * chips
            cases.append(
                {
                    "case": f"{kind} {name}",
                    "ours": rate,
                    "peer": appetite,
                    "ratio": rate / appetite,
                    "cores_needed": appetite / rate,
                    "cores_there": cores,
                }
            )
            print(
                f"  {name}: {chips} chips of a host eat {appetite:,.0f} tokens/s: "
                f"{appetite / rate:.2f} of its {cores} cores"
            )
    if options.json:
        figures = {"settings": vars(options) | {"json": None}, "cases": cases}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
