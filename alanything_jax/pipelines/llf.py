"""Learning from language feedback: sample, critique, refine, verify, pair, align.

Align Anything (arXiv:2412.15838), step two: y from the policy, a critique c of it, a
refined answer y* given x, y and c; the pair y* over y trains the policy by DPO. Stages
are fixed shards of rows: each has its own seed and batch shape, is written aside and
renamed, and starts over if it was killed, so nothing is repeated or lost.

    <run>/round-0/sample/shard-00000.jsonl ... critique, refine, verify
    <run>/base, <run>/critic    runs, if the recipe has them; export/ in each
    <run>/round-0/pairs         TFDS data set
    <run>/round-0/align         a run; export/ in it is the new policy
    <run>/yield.json            what each stage kept, and why it dropped the rest

On several hosts, with a run directory that all see, every host does its share of the
shards; training is one job of all. The pairs are the same on any number of hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.data import store, views
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.pipelines import llf_stages as stages
from alanything_jax.pipelines.export import export
from alanything_jax.sharding import distributed
from alanything_jax.training import loop, online
from alanything_jax.training.run_dir import write_json

Verify = Literal["critic", "reward", "rule", "none"]


@dataclasses.dataclass(frozen=True)
class LLF:
    """A recipe.

    Attributes:
      align: the recipe that learns from the pairs; its data are replaced by each round's
        pairs, its model by the round's policy.
      base: a recipe that makes the first policy; None = `align.model` is the first.
      prompts: any data source; its responses are not read.
      critic: a recipe that teaches the first policy to criticise; or an HF directory or
        hub id; or "policy", the policy itself. refiner: a directory, hub id or "policy".
      verify: what decides that y* is better: the critic finds y bad and y* good; a
        reward model scores it higher; a rule does (`rule`); or nothing.
      reward: the reward model's HF directory, for `verify="reward"`.
      rule: (example, response) -> score, for `verify="rule"`, higher is better.
      feedback: a function (example, response) -> critique instead of a critic, such as
        the playground's oracle.
      templates: folder of `data/templates` with the words that ask for feedback.
      temperature: of y and of y* alike, or pairs would teach sharpness.
      keep_good: also refine answers that the critic calls good.
      max_length_ratio: longest y* allowed, in tokens of y; 0 = any.
      max_likeness: a y* that shares more of its tokens with y is a near-duplicate; 1 =
        only equal ones are dropped.
      max_pairs: pairs of a round; 0 = all. Chosen by seed.
      shard_rows: prompts of a shard, and rows decoded together.
    """

    name: str
    align: recipes.Experiment
    prompts: str
    base: recipes.Experiment | None = None
    critic: recipes.Experiment | str = "policy"
    refiner: str = "policy"
    verify: Verify = "critic"
    reward: str = ""
    rule: Callable[..., float] | None = None
    feedback: Callable[..., str] | None = None
    templates: str = "llf"
    rounds: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 256
    max_critique_tokens: int = 256
    keep_good: bool = False
    max_length_ratio: float = 0.0
    max_likeness: float = 1.0
    max_pairs: int = 0
    shard_rows: int = 128
    seed: int = 0

    def __post_init__(self):
        needs = {"reward": self.reward, "rule": self.rule}.get(self.verify, True)
        if not needs:
            raise ValueError(
                f'verify="{self.verify}" needs {self.verify}= to be given: a reward '
                "model's directory, or a function (example, response) -> score."
            )

    def tiny(self) -> LLF:
        """The same made small: a small model, few prompts, an oracle's word for a fault."""
        change = dataclasses.replace
        critic = self.critic
        if isinstance(critic, recipes.Experiment):
            critic = recipes.tiny(critic)
        return change(
            self,
            align=recipes.tiny(self.align),
            base=self.base and recipes.tiny(self.base),
            critic=critic,
            prompts=recipes.tiny_path(self.prompts),
            verify="none",
            keep_good=True,
            max_new_tokens=min(self.max_new_tokens, 48),
            max_critique_tokens=min(self.max_critique_tokens, 24),
            shard_rows=32,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it: the last policy's HF directory, and the yield of every stage."""

    policy: Path
    table: list[dict[str, Any]]


def llf(
    recipe: LLF, run_dir: str | Path | None = None, say: Callable[[str], None] = print
) -> Result:
    """Run every round, or go on where the run directory stopped.

    Raises ValueError: the directory belongs to another recipe, or a round made no pair.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    if str(run).startswith("gs:"):
        raise ValueError(
            f"run directory {run_dir}: the shards of a round are files that all hosts "
            "share. Mount the bucket with gcsfuse, and give the mounted path."
        )
    say = say if distributed.is_primary() else _silent
    stages.same_recipe(run / "llf.json", recipes.to_json(recipe))
    model = recipe.align.model
    if recipe.base is not None:
        say("the base model")
        model = trained(recipe.base, run / "base", say)
    if isinstance(recipe.critic, recipes.Experiment):
        say("the critic")
        critic = dataclasses.replace(recipe.critic, model=model)
        path = trained(critic, run / "critic", say).path
        recipe = dataclasses.replace(recipe, critic=path)
    table: list[dict[str, Any]] = []
    for number in range(recipe.rounds):
        folder = run / f"round-{number}"
        say(f"round {number + 1} of {recipe.rounds}: policy {model.path}")
        pairs = make_pairs(recipe, model, folder, number, table, say)
        if distributed.is_primary():
            write_json(run / "yield.json", table)
        align = dataclasses.replace(
            recipe.align,
            name=f"{recipe.name}-align",
            model=model,
            data=dataclasses.replace(recipe.align.data, path=str(pairs)),
            seed=recipe.seed + number,
        )
        model = trained(align, folder / "align", say)
    return Result(Path(model.path), table)


def _silent(line: str) -> None:
    """What a host says that is not the one that speaks."""


def trained(
    experiment: recipes.Experiment, run: Path, say: Callable[[str], None] = print
) -> ModelSource:
    """Train a recipe and export it, or find that done; the export as a source."""
    # Process 0 says: what a shared disk shows may lag behind on the others.
    if not distributed.gather((run / "export").exists())[0]:
        by = loop if experiment.rollout is None else online
        by.train(experiment, run, say)
        export(run, run / "export")
    distributed.wait()
    return dataclasses.replace(experiment.model, path=str(run / "export"), sha256="")


def make_pairs(
    recipe: LLF,
    model: Any,
    folder: Path,
    number: int,
    table: list[dict[str, Any]],
    say: Callable[[str], None] = print,
) -> Path:
    """Sample, critique, refine, verify; the pairs' data set. Adds to the yield table."""
    words = views.templates(recipe.templates)
    sampling = Sampling(recipe.temperature)
    policy = stages.Writer(load_model(model), sampling, recipe.shard_rows)
    critic = policy if recipe.critic == "policy" else _writer(recipe.critic, recipe)
    refiner = policy if recipe.refiner == "policy" else _writer(recipe.refiner, recipe)
    tokens, said = recipe.max_new_tokens, recipe.max_critique_tokens
    seed = (recipe.seed, number)
    run = stages.Runner(folder, seed, recipe.shard_rows, table, say)
    rows = stages.rows_of(recipe.prompts)
    rows = run("sample", rows, stages.sampler(policy, tokens), policy)
    rows = run("critique", rows, stages.critic(critic, words, recipe, said), critic)
    rows = run("refine", rows, stages.refiner(refiner, words, recipe, tokens), refiner)
    rows = run("verify", rows, stages.verifier(critic, words, recipe, said), critic)
    rows = stages.at_most(rows, recipe.max_pairs, seed)
    if not rows:
        raise ValueError(
            f"round {number} made no pair: see {folder} and the yield table for what each "
            f"filter dropped: {table}. Use a better critic, more prompts, or verify=none."
        )
    out = folder / "pairs"
    if distributed.is_primary() and not out.exists():
        store.write((row.example for row in rows), out)
    distributed.wait()
    say(f"{len(rows)} pairs in {out}")
    return out


def _writer(path, recipe):
    """A model that writes: its own answers take their most likely words."""
    return stages.Writer(hub.load(path), Sampling(0.0), recipe.shard_rows)
