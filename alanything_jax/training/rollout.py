"""Rollouts: prompts answered by the policy as it is, scored, and made into groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from alanything_jax import hub
from alanything_jax.data import coder as coders
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.data.groups import Data
from alanything_jax.data.mixture import permutation
from alanything_jax.data.prompts import Prompt
from alanything_jax.data.soft import Placement
from alanything_jax.generation.decode import Completion
from alanything_jax.generation.environment import (
    Complete,
    Environment,
    Trajectory,
    rollout_turns,
)
from alanything_jax.generation.external import External
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models.grammar import Grammar
from alanything_jax.rewards import combine
from alanything_jax.schema import Message, Modality, Response
from alanything_jax.training.rollout_file import Rolled


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How responses are made and rewarded, and how often each is learnt from.

    Attributes:
      rewards, cost: what scores a response; costs, of algorithms with a limit on them.
      environment: what answers the policy, whose rewards are added; None = one turn.
        turns, max_tokens: answers and tokens of a response at most, with one.
      samples: responses of each prompt.
      passes: times that a rollout is trained on. minibatches: optimizer steps of a pass; a
        rollout is `train.groups_per_step` x `minibatches` prompts.
      max_new_tokens, output: as `generate` takes them.
      sampling: without top-k, top-p and the like, whose log-probs no trainer computes.
      recompute: old log-probs by the trainer's own forward pass, not the sampler's; of an
        engine's answers always.
      dynamic: replace groups whose rewards are all equal, which teach nothing, by those of
        further prompts, `max_rounds` times at most (DAPO's dynamic sampling).
      overlong: a response that was cut off is learnt from ("keep"), or only counted among
        its group's rewards ("mask").
      report_by: a field of the record, such as `goal.task`, by whose values rewards are
        reported apart, too.
      best_and_worst: keep these two of each group, the best as the chosen one: DPO and
        its like then learn online.
      ptx: groups to imitate beside the rollouts, as many a step as `ptx_groups`.
      lag: 1 = the next rollout is made, by the policy as it was, while this one is learnt.
      engine: a server that answers in this process's place; None = this process.
      slots: rows decoded at a time. replay: a directory of rollouts to read, not make.
    """

    rewards: combine.Rewards | None = None
    cost: combine.Rewards | None = None
    environment: Environment | None = None
    turns: int = 4
    max_tokens: int = 1024
    samples: int = 8
    passes: int = 1
    minibatches: int = 1
    max_new_tokens: int = 256
    output: Modality = "text"
    sampling: Sampling = Sampling()
    recompute: bool = False
    dynamic: bool = False
    max_rounds: int = 4
    overlong: Literal["keep", "mask"] = "keep"
    report_by: str = ""
    best_and_worst: bool = False
    ptx: Data | None = None
    ptx_groups: int = 0
    lag: Literal[0, 1] = 0
    engine: External | None = None
    slots: int = 64
    replay: str = ""

    def __post_init__(self):
        plain = Sampling(temperature=self.sampling.temperature)
        if self.sampling != plain or self.sampling.temperature == 0:
            raise ValueError(
                f"rollout.sampling {self.sampling}: the trainer computes log-probs of the "
                "whole softmax, so give a temperature above 0 and nothing else."
            )
        if self.rewards is None and self.environment is None:
            raise ValueError("rollout: give rewards, or an environment that has some.")
        if self.best_and_worst and self.samples < 2:
            raise ValueError("rollout.best_and_worst needs rollout.samples >= 2.")

    @property
    def steps(self) -> int:
        """Optimizer steps of a rollout."""
        return self.passes * self.minibatches


def order(seed: int, cursor: int, count: int, size: int) -> list[int]:
    """The next `count` prompts of an endless sequence of seeded epochs over `size`."""
    places = range(cursor, cursor + count)
    return [int(permutation(seed, p // size, size)[p % size]) for p in places]


def collect(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    wanted: int,
    bundle: hub.Bundle,
    complete: Complete,
    start: tuple[int, int, int],
) -> Rolled:
    """Sample and score `wanted` groups.

    Args:
      bundle: its tokenizer and coder make text and media of tokens.
      start: seed, number of the rollout, cursor.
    """
    seed, number, cursor = start
    good: list[_Group] = []
    equal: list[_Group] = []
    errors, first = 0, ""
    rounds = rollout.max_rounds if rollout.dynamic else 1
    for round_ in range(rounds):
        places = order(seed, cursor, wanted - len(good), len(prompts))
        cursor += len(places)
        draw = np.random.SeedSequence([seed, number, round_]).generate_state(1)[0]
        groups = [prompts[place].group for place in places]
        seed_ = int(draw >> 1)
        if rollout.environment is None:
            said = complete(groups, rollout.samples, seed_)
        else:
            said = rollout_turns(
                complete,
                rollout.environment,
                [prompts[place] for place in places],
                bundle.tokenizer,
                bundle.coder,
                max_turns=rollout.turns,
                max_tokens=rollout.max_tokens,
                max_new_tokens=rollout.max_new_tokens,
                samples=rollout.samples,
                seed=seed_,
                output=rollout.output,
            )
        made, wrong, words = _scored(rollout, bundle, prompts, places, said)
        errors, first = errors + wrong, first or words
        good += [g for g in made if g.telling or not rollout.dynamic]
        equal += [g for g in made if rollout.dynamic and not g.telling]
        if len(good) == wanted:
            break
    # Where prompts that tell something ran out, the last others fill the step up.
    kept = good + equal[len(equal) - (wanted - len(good)) :]
    facts = {
        "rollout/equal_groups": float(np.mean([not g.telling for g in good + equal])),
        "rollout/finished": float(np.mean([g.finished for g in kept])),
        "rollout/tokens": float(np.mean([len(t) for g in kept for t in g.tokens])),
        "rollout/reward_errors": float(errors),
    }
    told = {f"reward/{n}": [g.terms[n] for g in kept] for n in kept[0].terms}
    if rollout.report_by:
        apart: dict[str, list[np.ndarray]] = {}
        for g in kept:
            value = field(prompts[g.place].record, rollout.report_by)
            apart.setdefault(value, []).append(g.rewards)
        told |= {f"reward_of/{name}": apart[name] for name in sorted(apart)}
    # A term that scored nothing has no mean.
    means = {name: _mean(values) for name, values in told.items()}
    facts |= {name: mean for name, mean in means.items() if mean is not None}
    rolled = Rolled(
        number=number,
        cursor=cursor,
        places=np.array([g.place for g in kept]),
        tokens=[g.tokens for g in kept],
        logps=[g.logps for g in kept],
        scored=[g.scored for g in kept],
        finished=np.stack([g.finished for g in kept]),
        rewards=np.stack([g.rewards for g in kept]),
        costs=np.stack([g.costs for g in kept]),
        facts=facts,
        first_error=first,
    )
    return _best_and_worst(rolled) if rollout.best_and_worst else rolled


@dataclasses.dataclass(frozen=True)
class _Group:
    """One prompt's K responses as they were scored."""

    place: int
    tokens: list[np.ndarray]
    logps: list[np.ndarray]
    scored: list[np.ndarray]
    finished: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    terms: dict[str, np.ndarray]

    @property
    def telling(self) -> bool:
        """Some response has another reward than another."""
        known = self.rewards[np.isfinite(self.rewards)]
        return len(known) > 1 and known.min() < known.max()


def field(record: Mapping[str, Any], dotted: str) -> str:
    """A record's value at a name such as `goal.task`.

    Raises KeyError: it has none.
    """
    value: Any = record
    for name in dotted.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise KeyError(
                f"rollout.report_by={dotted}: record {record.get('id')!r} has "
                f"no {name!r}; it has {sorted(value)}."
            )
        value = value[name]
    return str(value)


def _mean(values):
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None


def _scored(rollout, bundle, prompts, places, said):
    """Groups of one round, how many scores failed, and what the first one said."""
    size = rollout.samples
    rows = [
        row(bundle, rollout.output, prompts[places[n // size]], completion)
        for n, completion in enumerate(said)
    ]
    total, costs = np.zeros((2, len(rows)), np.float32)
    terms, errors, first = {}, 0, ""
    if rollout.rewards:
        scored = combine.score(rollout.rewards, rows)
        total, terms, first = scored.total, scored.terms, scored.first
        errors = sum(scored.errors.values())
    if rollout.environment:
        paid = np.array([walk.reward for walk in said], np.float32)
        turns = np.array([walk.turns for walk in said], np.float32)
        total, terms = total + paid, terms | {"environment": paid, "turns": turns}
        failed = [walk.error for walk in said if walk.error]
        errors, first = errors + len(failed), first or "".join(failed[:1])
    if rollout.cost:
        paid = combine.score(rollout.cost, rows)
        costs, first = paid.total, first or paid.first
        terms = terms | {f"cost/{name}": value for name, value in paid.terms.items()}
        errors += sum(paid.errors.values())
    groups = []
    for n, place in enumerate(places):
        own = slice(n * size, (n + 1) * size)
        groups.append(
            _Group(
                place,
                [c.tokens for c in said[own]],
                [c.logps for c in said[own]],
                [_own(c) for c in said[own]],
                np.array([c.finished for c in said[own]]),
                total[own],
                costs[own],
                {name: value[own] for name, value in terms.items()},
            )
        )
    return groups, errors, first


def _own(said):
    """Which tokens the policy sampled: of one turn, all."""
    whole = isinstance(said, Completion)
    return np.ones(len(said.tokens), bool) if whole else said.scored


def _best_and_worst(rolled):
    """Two responses of each group; NaN, which has no reward, is neither."""
    high = np.argmax(np.where(np.isnan(rolled.rewards), -np.inf, rolled.rewards), 1)
    low = np.argmin(np.where(np.isnan(rolled.rewards), np.inf, rolled.rewards), 1)
    # All alike: any two, whose rewards then are alike too.
    low = np.where(low == high, (high + 1) % rolled.rewards.shape[1], low)
    pair = np.stack([high, low], axis=1)

    def lists(values):
        return [[row[n] for n in own] for row, own in zip(values, pair, strict=True)]

    return dataclasses.replace(
        rolled,
        tokens=lists(rolled.tokens),
        logps=lists(rolled.logps),
        scored=lists(rolled.scored),
        finished=np.take_along_axis(rolled.finished, pair, 1),
        rewards=np.take_along_axis(rolled.rewards, pair, 1),
        costs=np.take_along_axis(rolled.costs, pair, 1),
    )


def row(
    bundle: hub.Bundle, output: Modality, prompt: Prompt, completion: Completion
) -> combine.Row:
    """What a reward is given: prompt, response with its media decoded, record."""
    facts = {"num_tokens": len(completion.tokens), "finished": completion.finished}
    if isinstance(completion, Trajectory):
        walked = Response(tuple(completion.messages))
        return prompt.messages, walked, prompt.record | facts
    tokens = completion.tokens
    if output != "text":
        tokens = np.append(prompt.group.prompt[-1:], tokens)
    parts = coders.parts(tokens, bundle.tokenizer, bundle.coder)
    response = Response((Message("assistant", parts),))
    return prompt.messages, response, prompt.record | facts


def encode(
    rolled: Rolled, rollout: Rollout, prompts: Sequence[Prompt], grammar: Grammar | None
) -> list[EncodedGroup]:
    """The groups to train on, with `reward` and what else algorithms read of each."""
    out = []
    for n, place in enumerate(rolled.places):
        group = prompts[place].group
        branches, stream = [], None
        several = zip(
            rolled.tokens[n], rolled.scored[n], rolled.finished[n], strict=True
        )
        for tokens, own, finished in several:
            learnt = finished or rollout.overlong == "keep"
            branch, stream = _branch(group, tokens, own & learnt, grammar)
            branches.append(branch)
        if rollout.best_and_worst and not rolled.rewards[n, 0] > rolled.rewards[n, 1]:
            # Neither is better, or one has no reward: there is no pair to learn from.
            none = np.zeros_like(branches[0].scored)
            branches = [dataclasses.replace(branches[0], scored=none)]
        numbers = {
            "reward": rolled.rewards[n],
            "cost": rolled.costs[n],
            "multiplier": np.float32(rolled.multiplier),
            "ptx": np.float32(0),
        }
        out.append(
            dataclasses.replace(
                group,
                branches=tuple(branches),
                numbers=numbers,
                prompt_stream=stream,
            )
        )
    return out


def _branch(group, tokens, scored, grammar):
    """A sampled response behind its prompt, and the prompt's streams."""
    size, stream = len(group.prompt), None
    if grammar is not None and grammar.blocks:
        every = np.concatenate([group.prompt, tokens])
        stream, forced = grammar.streams(every)
        scored = scored & ~forced[size:]
    soft = group.prompt_soft
    if soft is not None:
        # As the sampler counted: on from the prompt's last position.
        at = np.arange(1, len(tokens) + 1, dtype=np.int32)
        soft = Placement((), soft.position[:, -1:] + at, np.zeros_like(at))
    if stream is None:
        return Branch(tokens, scored, None, soft), None
    return Branch(tokens, scored, stream[size:], soft), stream[:size]


def whole(
    completion: Completion, prompt: np.ndarray, grammar: Grammar | None
) -> Completion:
    """The completion without the block that its limit cut; it then is not finished."""
    if grammar is None or not grammar.blocks:
        return completion
    size = len(prompt)
    kept = grammar.whole(np.concatenate([prompt, completion.tokens])) - size
    if kept >= len(completion.tokens):
        return completion
    kept = max(kept, 0)
    return Completion(completion.tokens[:kept], completion.logps[:kept], False)
