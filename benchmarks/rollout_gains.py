"""What learning from rollouts gave: the base and runs on the same new prompts, paired.

    python benchmarks/rollout_gains.py BASE_EXPORT EXPORT... [--judge REWARD_EXPORT]

512 prompts of combinations that no training prompt has, an answer each at temperature 1;
the oracle's score, and a reward model's where one is given; gains with 95% intervals that
draw prompts, and by kind of task. Playground models only.
"""

from __future__ import annotations

import argparse

import numpy as np

from alanything_jax import hub
from alanything_jax.evaluation import playground
from alanything_jax.hub.source import ModelSource
from alanything_jax.playground import oracle
from alanything_jax.rewards.model import TrainedReward

SEED, COUNT = 4052, 512


def scores(path: str, prompts: list, judge: TrainedReward | None) -> dict:
    """Name of a score -> [n] of a model's answers; NaN where there is none."""
    how = {"temperature": 1.0, "seed": SEED, "max_new_tokens": 48, "batch_size": 256}
    found = playground.measure(hub.load(path), prompts, **how)
    out = {"oracle": np.array(found.values)}
    if judge is not None:
        pairs = zip(prompts, found.answers, strict=True)
        rows = [(p.prompt, a.response, {"id": p.id}) for p, a in pairs]
        out["judge"] = np.array(judge(rows))
    return out


def told(gains: np.ndarray, tasks: list[str]) -> str:
    """A mean gain, its interval, and that of each kind of task."""
    value, low, high = playground.interval(gains[np.isfinite(gains)])
    apart = {
        task: np.nanmean(gains[[t == task for t in tasks]]) for task in sorted({*tasks})
    }
    each = "  ".join(f"{task} {gain:+.2f}" for task, gain in apart.items())
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]   {each}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--judge")
    options = parser.parse_args()
    judge = None
    if options.judge:
        judge = TrainedReward(ModelSource(options.judge, compute_dtype="mixed"))
    prompts = playground.test_prompts(COUNT, SEED)
    tasks = [oracle.goal_of(prompt)["task"] for prompt in prompts]
    before = scores(options.base, prompts, judge)
    print("base", {name: round(float(np.nanmean(v)), 3) for name, v in before.items()})
    for run in options.runs:
        for name, values in scores(run, prompts, judge).items():
            print(f"{run}  {name:<7}", told(values - before[name], tasks))


if __name__ == "__main__":
    main()
