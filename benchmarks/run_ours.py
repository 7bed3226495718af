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
from collections.abc import Callable
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
            path=f"{folder}/model",
            param_dtype=settings.get("weights", "float32"),
            compute_dtype=settings.get("dtype", "float32"),
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


def timed_reference(spent: dict, clock: Callable[[], float]) -> None:
    """Make the reference pass report its seconds, after one batch has compiled it."""
    plain = reference.compute

    def compute(forward, groups, layout, report):
        rows = packing.plan(groups[:1], layout, couples=False)[0]
        jax.block_until_ready(forward(packing.lay_out(groups[:1], rows, layout)))
        begin = clock()
        out = plain(forward, groups, layout, report)
        spent["reference"] = clock() - begin
        return out

    reference.compute = compute


def run(folder: str, name: str, settings: dict) -> dict:
    """One epoch, or `steps` steps; figures of training and of the reference pass.

    Seconds are of the `clock` of `time` that the settings name.
    """
    device = jax.devices()[0]
    if device.platform != settings.get("device", "cpu"):
        sys.exit(f"JAX runs on {device.platform}: install 'jax[cuda13]' beside a card.")
    clock = getattr(time, settings.get("clock", "process_time"))
    os.environ["ALANYTHING_CACHE"] = tempfile.mkdtemp(dir=folder)
    spent: dict[str, float] = {}
    timed_reference(spent, clock)
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
                begin = clock()
            data = prepared.train[step]
            state, numbers = compiled.run_step(parts, prepared, state, data)
            logs.append(numbers)
            fill.append(data.fill)
            tokens += data.tokens * (step >= settings["warmup"])
    jax.block_until_ready(state)
    spent["train"] = clock() - begin
    # None but on a card.
    memory = device.memory_stats() or {}
    scored = [sum(int(b.scored.sum()) for b in g.branches) for g in groups]
    return {
        "pairs": (steps - settings["warmup"]) * settings["groups"],
        "train_s": spent["train"],
        "reference_s_per_pair": spent["reference"] / len(groups),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "card_peak_mib": memory.get("peak_bytes_in_use", 0) // 2**20,
        "versions": {"jax": jax.__version__},
        "tokens": tokens,
        "tokens_per_pair": sum(map(packing.group_length, groups)) / len(groups),
        "scored_per_pair": sum(scored) / len(groups),
        "fill": sum(fill) / len(fill),
        "losses": [log["loss"] for log in logs],
        "logps": [(log["logp_chosen"], log["logp_rejected"]) for log in logs],
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
