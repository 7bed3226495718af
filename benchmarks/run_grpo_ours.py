"""Our GRPO on the prompts of `grpo_vs_trl.py`, by the parts `alanything train` is made of.

python benchmarks/run_grpo_ours.py FOLDER '{"row_tokens": 2048, ...}'
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from grpo_vs_trl import GROUP, NEW, PROMPTS, score

from alanything_jax.algorithms.grpo import GRPO
from alanything_jax.data.groups import Data
from alanything_jax.experiment import Experiment, Train
from alanything_jax.hub.source import ModelSource
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.rewards.rules import text_of
from alanything_jax.training import online, rollout, rollout_file, run_dir
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts as compiled
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.step import Compute


@dataclasses.dataclass(frozen=True)
class Score:
    """The benchmark's reward."""

    def __call__(self, prompt, response, record):
        """0 .. 1."""
        return score(text_of(response))


def recipe(folder: str, settings: dict, replay: str = "") -> Experiment:
    """The same model, prompts, optimizer and group as TRL's side."""
    return Experiment(
        name="benchmark",
        model=ModelSource(f"{folder}/model", compute_dtype=settings["dtype"]),
        data=Data(f"{folder}/prompts.jsonl", chat=False, max_prompt_tokens=512),
        algorithm=GRPO(),
        optimizer=Optimizer(learning_rate=1e-4, schedule="constant", clip_norm=1.0),
        train=Train(steps=settings["steps"], groups_per_step=PROMPTS),
        compute=Compute(
            row_tokens=settings["row_tokens"],
            rows_per_microbatch=settings["rows"],
            block=settings["block"],
            head_chunk=256,
            head_block=512,
        ),
        rollout=rollout.Rollout(
            rewards=Rewards((Term("score", Score()),)),
            samples=GROUP,
            max_new_tokens=NEW,
            slots=PROMPTS * GROUP,
            replay=replay,
        ),
    )


def run(folder: str, settings: dict) -> dict:
    """`steps` steps; with "replay" one step on what TRL has sampled."""
    with tempfile.TemporaryDirectory() as place:
        run = run_dir.RunDir(Path(place))
        replay = f"{folder}/rollouts" if settings.get("replay") else ""
        experiment = recipe(folder, settings, replay)
        source = online.from_rollouts(experiment, run, lambda line: None)
        if replay:
            _samples_of_trl(folder)
        prepared = source.prepared
        transformation = optimizers.make(
            experiment.optimizer, source.steps, prepared.rates
        )
        lines = []
        with jax.set_mesh(prepared.mesh):
            state = compiled.initial_state(
                prepared.trainable, prepared.shardings, prepared.mesh, transformation
            )
            parts = compiled.compile_parts(prepared, transformation)
            feed = source.feed(1)
            for number in range(1, source.steps + 1):
                data = feed(number, state)
                state, numbers = compiled.run_step(parts, prepared, state, data)
                lines.append(numbers | data.facts)
                if number == settings["warmup"]:
                    begin = time.process_time()
            end = time.process_time()
    steps = source.steps - settings["warmup"]
    return {
        "seconds": (end - begin) / max(1, steps),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "losses": [line["loss"] for line in lines],
        "grad_norms": [line["grad_norm"] for line in lines],
        "rewards": [line["reward"] for line in lines],
        "logps": [-line["entropy"] for line in lines],
        "tokens": [line["rollout/tokens"] for line in lines],
    }


def _samples_of_trl(folder):
    """TRL's first samples as a rollout of ours, with the rewards that it gave them."""
    with np.load(f"{folder}/first.npz") as file:
        first = {name: file[name] for name in file.files}
    kept = first["completion_mask"] > 0
    flat = [
        ids[m].astype(np.int32)
        for ids, m in zip(first["completion_ids"], kept, strict=True)
    ]
    logps = [x[m] for x, m in zip(first["logps"], kept, strict=True)]
    shape = (PROMPTS, GROUP)
    # TRL shuffles the samples of a step before it cuts it up: put groups together again.
    keys = [
        tuple(p[m > 0])
        for p, m in zip(first["prompt_ids"], first["prompt_mask"], strict=True)
    ]
    order = sorted(range(len(keys)), key=lambda n: keys[n])

    def grouped(values):
        values = [values[n] for n in order]
        return [values[n : n + GROUP] for n in range(0, len(values), GROUP)]

    names = {tuple(p.group.prompt): n for n, p in enumerate(_prompts(folder))}
    places = np.array([names[keys[n]] for n in order[::GROUP]])
    rolled = rollout_file.Rolled(
        number=0,
        cursor=PROMPTS,
        places=places,
        tokens=grouped(flat),
        logps=grouped(logps),
        scored=grouped([np.ones(len(ids), bool) for ids in flat]),
        finished=np.ones(shape, bool),
        rewards=np.array(grouped(list(first["rewards"])), np.float32),
        costs=np.zeros(shape, np.float32),
        facts={"rollout/tokens": float(kept.sum(1).mean())},
        recorded={"old": grouped(logps), "sampler": grouped(logps)},
    )
    rollout_file.save(rolled, Path(folder) / "rollouts" / "000000.npz")


def _prompts(folder):
    settings = {
        "dtype": "float32",
        "steps": 1,
        "row_tokens": 2048,
        "rows": 1,
        "block": 64,
    }
    place = Path(folder) / "listed.jsonl"
    return online.prepare(recipe(folder, settings), place, lambda line: None)[1]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
