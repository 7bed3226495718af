"""Our DPO on one set of pairs, by the parts `alanything train` is made of; prints JSON.

python benchmarks/run_ours.py FOLDER chat '{"row_tokens": 1024, ...}'
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax

from alanything_jax.algorithms.dpo import DPO
from alanything_jax.data import packing
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts as compiled
from alanything_jax.training import reference
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.prepare import prepare
from alanything_jax.training.step import Compute


def recipe(folder: str, name: str, settings: dict) -> Experiment:
    """The same model, pairs, optimizer and pairs a step as TRL's side."""
    return Experiment(
        name="benchmark",
        model=ModelSource(
            path=f"{folder}/model", compute_dtype=settings.get("dtype", "float32")
        ),
        data=Data(path=f"{folder}/{name}.jsonl", chat=False, max_group_tokens=4096),
        algorithm=DPO(beta=0.1),
        optimizer=Optimizer(learning_rate=1e-4, schedule="constant", clip_norm=1.0),
        train=Train(groups_per_step=settings["groups"]),
        compute=Compute(
            row_tokens=settings["row_tokens"],
            rows_per_microbatch=settings["rows_per_microbatch"],
            block=settings["block"],
            head_chunk=settings["head_chunk"],
            head_block=settings.get("head_block", 2048),
            remat=settings["remat"],
            attention=settings.get("attention", "blockwise"),
        ),
    )


def timed_reference(spent: dict) -> None:
    """Make the reference pass report its CPU seconds, after one batch has compiled it."""
    plain = reference.compute

    def compute(forward, groups, layout, report):
        rows = packing.plan(groups[:1], layout, couples=False)[0]
        jax.block_until_ready(forward(packing.lay_out(groups[:1], rows, layout)))
        begin = time.process_time()
        out = plain(forward, groups, layout, report)
        spent["reference"] = time.process_time() - begin
        return out

    reference.compute = compute


def run(folder: str, name: str, settings: dict) -> dict:
    """One epoch, or `steps` steps; figures of training and of the reference pass."""
    os.environ["ALANYTHING_CACHE"] = tempfile.mkdtemp(dir=folder)
    spent: dict[str, float] = {}
    timed_reference(spent)
    experiment = recipe(folder, name, settings)
    prepared = prepare(experiment, Path(folder) / "quarantine.jsonl", lambda line: None)
    groups = prepared.train.groups
    steps = settings.get("steps") or len(groups) // settings["groups"]
    transformation = optimizers.make(experiment.optimizer, steps, prepared.rates)
    logs, tokens, fill = [], 0, []
    with jax.set_mesh(prepared.mesh):
        state = compiled.initial_state(
            prepared.trainable, prepared.shardings, prepared.mesh, transformation
        )
        parts = compiled.compile_parts(prepared, transformation)
        for step in range(steps):
            if step == settings["warmup"]:
                begin = time.process_time()
            data = prepared.train[step]
            state, numbers = compiled.run_step(parts, prepared, state, data)
            logs.append(numbers)
            fill.append(data.fill)
            tokens += data.tokens * (step >= settings["warmup"])
    jax.block_until_ready(state)
    cpu = time.process_time() - begin
    scored = [sum(int(b.scored.sum()) for b in g.branches) for g in groups]
    return {
        "pairs": (steps - settings["warmup"]) * settings["groups"],
        "train_cpu_s": cpu,
        "reference_cpu_s_per_pair": spent["reference"] / len(groups),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "tokens": tokens,
        "tokens_per_pair": sum(map(packing.group_length, groups)) / len(groups),
        "scored_per_pair": sum(scored) / len(groups),
        "fill": sum(fill) / len(fill),
        "losses": [log["loss"] for log in logs],
        "logps": [(log["logp_chosen"], log["logp_rejected"]) for log in logs],
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
