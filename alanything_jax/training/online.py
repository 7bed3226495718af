"""The loop from rollouts: prompts -> answers -> rewards -> the same steps as from data.

    rollout k   P prompts x K answers by the policy as it is, scored, on disk
    step        a minibatch of its groups; `passes` times over, in a new order each time
    rollout k+1 ...

Everything about a rollout is a function of (seed, k, cursor) and the weights, and is in
its file; a step's groups are a function of (seed, step): so a run resumes exactly, in the
middle of a pass too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import packing, pipeline
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.data.groups import load_groups
from alanything_jax.data.mixture import permutation
from alanything_jax.data.prompts import Prompt, load_prompts
from alanything_jax.experiment import Experiment
from alanything_jax.generation.decode import Completion
from alanything_jax.sharding import distributed
from alanything_jax.training import (
    completers,
    lead,
    loop,
    rollout,
    rollout_file,
    run_dir,
)
from alanything_jax.training import prepare as preparing
from alanything_jax.training.prepare import Prepared
from alanything_jax.training.step import State


def train(
    experiment: Experiment, directory: str | Path | None = None, say: loop.Say = print
) -> run_dir.RunDir:
    """Run a recipe that has a `rollout`; as `loop.train`.

    Raises ValueError: prompts without room for an answer, or what `loop.train` raises.
    """
    return loop.run_steps(experiment, directory, say, from_rollouts)


def from_rollouts(
    experiment: Experiment, run: run_dir.RunDir, say: loop.Say
) -> loop.Source:
    """Steps of what the policy answers to the recipe's prompts."""
    prepared, prompts, ptx = prepare(experiment, run.path / "quarantine.jsonl", say)
    total = experiment.train.steps
    if total is None:
        passed = experiment.train.epochs * experiment.rollout.passes
        total = int(passed * len(prompts) // experiment.train.groups_per_step)
    total = max(total, 1)
    rolls = Rolls(experiment, prepared, prompts, ptx, run, total)
    return loop.Source(prepared, total, rolls.begin, rolls.settle)


def prepare(
    experiment: Experiment, quarantine: Path, say: loop.Say
) -> tuple[Prepared, list[Prompt], list[EncodedGroup]]:
    """Model, prompts, and the groups that are only imitated.

    Raises ValueError: a prompt and its answer would not fit a row.
    """
    options, data, compute = experiment.rollout, experiment.data, experiment.compute
    mesh, table, bundle = preparing.load(experiment, say)
    opener, length = None, options.max_new_tokens
    if options.output != "text":
        block = bundle.coder.grammar.block(options.output) if bundle.coder else None
        if block is None:
            raise ValueError(
                f"rollout.output={options.output}: the model says text alone. Use an "
                "any-to-any model."
            )
        opener, length = block.open_id, block.total
    if options.environment is not None:
        length = options.max_tokens
    room = compute.row_tokens - length
    if room < 1:
        raise ValueError(
            f"answers of up to {length} tokens leave no room for a prompt in rows of "
            f"{compute.row_tokens}: raise compute.row_tokens or lower max_new_tokens."
        )
    # A prompt that leaves an answer no room is set aside, and counted, here.
    data = dataclasses.replace(
        data, max_prompt_tokens=min(data.max_prompt_tokens, room)
    )
    known = (bundle.tokenizer, bundle.coder)
    listed = quarantine if distributed.is_primary() else None
    prompts = load_prompts(data, *known, listed, say, opener)
    ptx: list[EncodedGroup] = []
    if options.ptx:
        ptx, _ = load_groups(options.ptx, known[0], 1, None, say, known[1])
    preparing.check_same([*(prompt.group for prompt in prompts), *ptx])
    program = preparing.program_of(experiment, bundle.model.config)
    params = preparing.partition(experiment, program, bundle, mesh, table)
    trainable, frozen, rates, shardings = params
    groups = [*(prompt.group for prompt in prompts), *ptx]
    layout = packing.Layout(
        rows=preparing.meshes.rows(mesh, table, compute.rows_per_microbatch),
        row_tokens=compute.row_tokens,
        groups=experiment.train.groups_per_step + options.ptx_groups,
        responses=2 if options.best_and_worst else options.samples,
        numbers=tuple(experiment.algorithm.numbers),
        media=preparing.media_plans(groups, compute, bundle.model.config),
    )
    if experiment.algorithm.couples:
        # Told now, not when a rollout was paid for.
        longest = max((p.group for p in prompts), key=lambda g: len(g.prompt))
        whole = Branch(np.zeros(length, np.int32), np.ones(length, bool))
        most = dataclasses.replace(longest, branches=(whole,) * layout.responses)
        packing.plan([most], layout, True)
    bundle = dataclasses.replace(bundle, params={})
    prepared = Prepared(
        program,
        bundle,
        mesh,
        table,
        trainable,
        frozen,
        shardings,
        rates,
        layout,
        None,
        None,
    )
    return prepared, prompts, ptx


@dataclasses.dataclass
class Rolls:
    """Rollouts as steps need them: read from disk where they are, else made.

    Attributes:
      total: steps of the run.
      current: the rollout at hand, and its encoded groups.
      coming: with `lag`, the next one under way in a thread, by its number.
    """

    experiment: Experiment
    prepared: Prepared
    prompts: list[Prompt]
    ptx: list[EncodedGroup]
    run: run_dir.RunDir
    total: int
    current: tuple[rollout_file.Rolled, list[EncodedGroup]] | None = None
    coming: dict[int, Any] = dataclasses.field(default_factory=dict)
    thread: Any = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1)
    )

    @property
    def options(self) -> rollout.Rollout:
        """The recipe's."""
        return self.experiment.rollout

    def begin(self, first: int) -> loop.Feed:
        """Forget rollouts that steps made which are to be done again."""
        known = (first - 1) // self.options.steps + self.options.lag
        if distributed.is_primary():
            run_dir.pull(self.run, "rollouts/*.npz")
            for path in self.run.rollouts.glob("*.npz"):
                if int(path.stem) > known:
                    run_dir.remove(self.run, path)
        return self.step

    def path(self, number: int) -> Path:
        """Where a rollout lies."""
        return self.run.rollouts / f"{number:06d}.npz"

    def step(self, number: int, state: State) -> pipeline.StepData:
        """What step `number`, from 1, trains on."""
        done, per_step = number - 1, self.experiment.train.groups_per_step
        which, inner = divmod(done, self.options.steps)
        if self.current is None or self.current[0].number != which:
            self.current = self._get(which, state)
            # A run that goes on in the middle of a rollout has shown it.
            if inner == 0 and distributed.is_primary():
                self._show(self.current[0], number)
        rolled, groups = self.current
        lap, place = divmod(inner, self.options.minibatches)
        seed = [self.experiment.seed, which, lap, 7]
        order = np.random.default_rng(seed).permutation(len(groups))
        some = order[place * per_step : (place + 1) * per_step]
        recorded = {
            self.prepared.program.recorded[role]: [values[n] for n in some]
            for role, values in rolled.recorded.items()
        }
        picked = [groups[n] for n in some]
        for group in self._imitated(done, rolled.multiplier):
            picked.append(group)
            for values in recorded.values():
                values.append([np.zeros(len(b.tokens)) for b in group.branches])
        prepared = self.prepared
        how = (prepared.layout, prepared.program.algorithm.couples)
        own = preparing.own_rows(prepared.mesh, prepared.rules, prepared.layout)
        data = pipeline.pack(done, picked, *how, recorded, own)
        facts = {"rollout": which, "policy_age": inner + rolled.age} | rolled.facts
        return dataclasses.replace(data, facts=facts)

    def settle(self) -> None:
        """Wait for what is under way, so that it is on disk."""
        for job in self.coming.values():
            job.result()

    def _get(self, which, state):
        """Rollout `which`; with `lag` the next one is begun by the same policy."""
        params = self.prepared.frozen | state.trainable
        rolled = self._ready(which)
        if rolled is None:
            rolled = self._make(which, self._before(which), params, 0)
        following = which + 1
        wanted = following * self.options.steps < self.total
        if self.options.lag and wanted and not self._stored(following):
            # The loop gives its arrays away step by step.
            kept = self.prepared.frozen | jax.tree.map(jnp.copy, state.trainable)
            age = self.options.steps
            # In a context of its own: the mesh that is set is a thread's own.
            self.coming[following] = self.thread.submit(
                self._make_in_thread, following, rolled, kept, age
            )
            if self.prepared.mesh.size > 1:
                # Devices run the programs that they share in one order.
                self.settle()
        grammar = self.prepared.program.config.grammar
        return rolled, rollout.encode(rolled, self.options, self.prompts, grammar)

    def _make_in_thread(self, *how):
        with jax.set_mesh(self.prepared.mesh):
            return self._make(*how)

    def _before(self, which):
        """The rollout before one: at hand, or, where a run goes on, on disk."""
        if self.current and self.current[0].number == which - 1:
            return self.current[0]
        return self._stored(which - 1) if which else None

    def _ready(self, which):
        """A rollout that is under way or on disk, else None."""
        if which in self.coming:
            return self.coming.pop(which).result()
        return self._stored(which)

    def _stored(self, which):
        """A rollout on disk, or of those to replay; process 0 looks for all of them."""
        return lead.led(lambda _: self._load(which), lambda: None)

    def _load(self, which):
        path = self.path(which)
        if not path.exists() and self.options.replay:
            there = Path(self.options.replay) / path.name
            if not there.exists():
                raise FileNotFoundError(
                    f"rollout.replay={self.options.replay} has no {there.name}: give the "
                    "rollouts/ of a run of as many steps."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, path)
        return rollout_file.load(path) if path.exists() else None

    def _make(self, which, last, params, age):
        """Sample, score, record and write rollout `which`, which follows `last`."""
        cursor, multiplier = 0, 0.0
        costly = "multiplier" in self.experiment.algorithm.numbers
        if costly:
            multiplier = self.experiment.algorithm.multiplier
        if last is not None:
            cursor, multiplier = last.cursor, last.multiplier
            if costly and np.isfinite(last.costs).any():
                multiplier = self.experiment.algorithm.next_multiplier(
                    last.multiplier, float(np.nanmean(last.costs))
                )
        wanted = self.experiment.train.groups_per_step * self.options.minibatches
        how = (self.prepared, self.options, params)

        # Gathering the weights takes all processes; the engine gets them from one.
        weights = completers.merged(*how) if self.options.engine else None

        def collect(ask):
            if weights is not None:
                complete = completers.served(*how[:2], weights, which)
            else:
                complete = completers.asking(ask, self.prompts)
            start = (self.experiment.seed, which, cursor)
            about = (self.options, self.prompts, wanted, self.prepared.bundle)
            return rollout.collect(*about, complete, start)

        asked = completers.asked(completers.own(*how), self.prompts)
        rolled = lead.led(collect, asked)
        rolled = dataclasses.replace(rolled, multiplier=multiplier, age=age)
        rolled = completers.record(*how, self.prompts, rolled)
        if distributed.is_primary():
            rollout_file.save(rolled, self.path(which))
        return rolled

    def _show(self, rolled, step):
        """One answer of the rollout, for people."""
        prompt = self.prompts[rolled.places[0]]
        tokens = rolled.tokens[0][0]
        said = Completion(tokens, rolled.logps[0][0], bool(rolled.finished[0, 0]))
        row = rollout.row(self.prepared.bundle, self.options.output, prompt, said)
        parts = [p.text or f"<{p.kind}>" for p in row[1].messages[0].parts]
        shown = {
            "step": step,
            "id": prompt.group.id,
            "prompt": "\n".join(message.text for message in prompt.messages),
            "response": "".join(parts),
            "reward": _known(rolled.rewards[0, 0]),
        }
        if rolled.first_error:
            shown["first_error"] = rolled.first_error
        run_dir.append(self.run.samples, shown)

    def _imitated(self, done, multiplier):
        """The groups of `rollout.ptx` that a step has, with numbers as all have."""
        count, size = self.options.ptx_groups, len(self.ptx)
        wide = self.prepared.layout.responses
        none = np.full(wide, np.nan, np.float32)
        numbers = {"reward": none, "cost": none, "ptx": np.float32(1)}
        numbers["multiplier"] = np.float32(multiplier)
        for place in range(done * count, (done + 1) * count if size else done * count):
            order = permutation(self.experiment.seed, place // size, size)
            group = self.ptx[int(order[place % size])]
            # The preferred answer comes first, and it alone is imitated.
            yield dataclasses.replace(
                group, branches=group.branches[:1], numbers=numbers
            )


def _known(value):
    return float(value) if np.isfinite(value) else None
