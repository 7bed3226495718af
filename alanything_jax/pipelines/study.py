"""The study: is it the language feedback that helps, or learning from one's own answers?

For each seed: a base and a critic; then every arm makes pairs its own way, trains from
the same base for as many steps on as many pairs, and is scored on the same new prompts.

    <run>/seed-0/base, critic       runs, shared by the arms
    <run>/seed-0/<arm>/             what makes its pairs, and its run
    <run>/seed-0/<arm>/scores.json  finished: never done again
    <run>/report.json, table.md, figure.svg
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.algorithms.sft import SFT
from alanything_jax.evaluation import playground as scores
from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines import study_pairs, study_report
from alanything_jax.pipelines.llf import LLF, llf, trained
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.rewards.model import TrainedReward
from alanything_jax.training.run_dir import write_aside, write_json

Say = Callable[[str], None]
QUICK = ("binary10", "onpolicy_oracle", "llf", "llf_verified", "llf_oracle")


@dataclasses.dataclass(frozen=True)
class Study:
    """Which arms, on how many seeds.

    Attributes:
      llf: the recipe whose base, critic, prompts and alignment all arms share.
      reward, online: of arms whose names end with `_ppo`: the reward model that their
        pairs train, and the rollouts that learn from it.
      arms: names of `study_pairs.ARMS`; "base" is always there.
      pairs: pairs of every arm; arms that find fewer say so in the table.
      prompts: new prompts, of combinations that no training prompt has.
      quick: five arms and three seeds.
    """

    llf: LLF
    reward: recipes.Experiment | None = None
    online: recipes.Experiment | None = None
    name: str = "study_llf"
    arms: tuple[str, ...] = tuple(study_pairs.ARMS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    pairs: int = 400
    prompts: int = 1024
    split: str = "test"
    prompt_seed: int = 4052
    quick: bool = False

    def __post_init__(self):
        unknown = sorted(set(self.arms) - set(study_pairs.ARMS))
        if unknown:
            raise ValueError(
                f"the study has no arms {unknown}; it has {sorted(study_pairs.ARMS)}."
            )
        online = [arm for arm in self.arms if arm.endswith("_ppo")]
        if online and not self.quick and (self.reward is None or self.online is None):
            raise ValueError(f"arms {online} need study.reward and study.online.")

    def tiny(self) -> Study:
        """The same on small models and few prompts, to see that it works."""
        small = {name: getattr(self, name) for name in ("reward", "online")}
        small = {name: made and recipes.tiny(made) for name, made in small.items()}
        whole = self.llf.tiny()
        return dataclasses.replace(
            self, llf=whole, **small, seeds=(0,), pairs=16, prompts=16
        )


def study(
    recipe: Study, run_dir: str | Path | None = None, say: Say = print
) -> dict[str, Any]:
    """Run every arm of every seed, or go on where the run directory stopped.

    Returns:
      `{arm: {"T1": {"mean", "gain": [value, low, high]}, "T0": ..., "pairs": ...}}`, also
      in `<run>/report.json`, with a table and a figure beside it.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    arms, seeds = recipe.arms, recipe.seeds
    if recipe.quick:
        arms, seeds = QUICK, recipe.seeds[:3]
    done: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        home = run / f"seed-{seed}"
        base, critic = _base_and_critic(recipe.llf, seed, home, say)
        for arm in ("base", *arms):
            path = home / arm / "scores.json"
            if not path.exists():
                say(f"seed {seed}: {arm}")
                found = _run_arm(recipe, arm, seed, base, critic, home / arm, say)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_aside(path, json.dumps(found))
            done.setdefault(arm, []).append(json.loads(path.read_text()))
    report = study_report.figures(done)
    write_json(run / "report.json", report)
    (run / "table.md").write_text(study_report.table(report), encoding="utf-8")
    (run / "figure.svg").write_text(study_report.figure(report), encoding="utf-8")
    say(study_report.table(report))
    return report


def _base_and_critic(recipe: LLF, seed: int, home: Path, say: Say):
    """Sources of a seed's base model and critic."""
    change = dataclasses.replace
    base = trained(change(recipe.base, seed=seed), home / "base-run", say)
    critic = change(recipe.critic, model=base, seed=seed)
    return base, trained(critic, home / "critic-run", say)


def _run_arm(recipe, arm, seed, base: ModelSource, critic, home: Path, say: Say):
    """Train an arm and score it: {"T1": [scores], "T0": ..., "pairs": facts}."""
    change, policy, facts = dataclasses.replace, base.path, {}
    if arm != "base":
        whole = change(
            recipe.llf,
            base=None,
            critic=str(critic.path),
            seed=seed,
            max_pairs=recipe.pairs,
            align=change(recipe.llf.align, model=base, seed=seed),
        )
        make, settings = study_pairs.ARMS[arm]
        if make is None:
            result = llf(change(whole, **settings), home, say)
            policy = result.policy
            facts = study_pairs.facts(home / f"round-{whole.rounds - 1}" / "pairs")
        else:
            path = make(whole, home, say, **settings)
            facts = study_pairs.facts(path)
            if arm.endswith("_ppo"):
                policy = _by_reward(recipe, base, seed, path, home, say)
            else:
                policy = trained(_align(whole, arm, path), home / "align", say).path
    bundle = hub.load(policy)
    prompts = scores.test_prompts(recipe.prompts, recipe.prompt_seed, recipe.split)
    out: dict[str, Any] = {"pairs": facts}
    for name, temperature in (("T1", 1.0), ("T0", 0.0)):
        found = scores.measure(
            bundle,
            prompts,
            temperature=temperature,
            seed=seed,
            max_new_tokens=recipe.llf.max_new_tokens,
            batch_size=recipe.llf.shard_rows,
        )
        out[name] = [round(float(v), 6) for v in found.values]
        out["tasks"] = list(found.tasks)
    return out


def _by_reward(recipe, base: ModelSource, seed, path, home: Path, say: Say) -> str:
    """Train a reward model on an arm's pairs, and the policy against it."""
    change = dataclasses.replace
    data = change(recipe.reward.data, path=str(path), heldout_path=None)
    reward = change(recipe.reward, model=base, seed=seed, data=data)
    judge = trained(reward, home / "reward", say)
    score = Rewards((Term("reward", TrainedReward(judge), batched=True),))
    rollout = change(recipe.online.rollout, rewards=score)
    online = change(recipe.online, model=base, value=judge, seed=seed, rollout=rollout)
    return trained(online, home / "online", say).path


def _align(whole: LLF, arm: str, path: str | Path):
    """The recipe that learns from an arm's pairs: the shared one, or SFT on the chosen."""
    change = dataclasses.replace
    align = change(whole.align, name=arm, data=change(whole.align.data, path=str(path)))
    return change(align, algorithm=SFT()) if arm.startswith("sft") else align
