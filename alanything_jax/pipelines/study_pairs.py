"""How each arm of the study makes its pairs, all of one number from the same prompts.

An arm is (maker, settings); where the maker is None it is a whole run of `llf`, with
fields of its recipe replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.data import store, views
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import load_model
from alanything_jax.pipelines import llf_stages as stages
from alanything_jax.pipelines.llf import LLF, make_pairs
from alanything_jax.playground import oracle, tasks
from alanything_jax.schema import Example, Feedback


def binary(whole: LLF, home: Path, say: Any, error: float, times: int = 1) -> Path:
    """Off-policy pairs: two people's answers, chosen by an annotator who errs.

    Args:
      times: as many pairs again for the price of one critique.
    """
    del say
    count, out = times * whole.max_pairs, home / "pairs"
    if not out.exists():
        store.write(tasks.pairs(count, 100 + whole.seed, error), out)
    return out


def two_samples(whole: LLF, home: Path, say: Any, ranker: str) -> Path:
    """On-policy pairs: two answers of the policy; the better one by oracle or critic.

    The critic ranks by its verdict: pairs are those of which it calls one good.
    """
    out = home / "pairs"
    if out.exists():
        return out
    words = views.templates(whole.templates)
    policy = stages.Writer(
        load_model(whole.align.model), Sampling(whole.temperature), whole.shard_rows
    )
    run = stages.Runner(home, (whole.seed, 0), whole.shard_rows, [], say)
    rows = stages.rows_of(whole.prompts)
    for name in ("first", "second"):
        rows = run(name, rows, stages.sampler(policy, whole.max_new_tokens), policy)
    judge = policy
    if ranker == "critic":
        judge = stages.Writer(hub.load(whole.critic), Sampling(0.0), whole.shard_rows)

    def rank(some, seed):
        if ranker == "oracle":
            values = [
                [oracle.rule(r.example, y) for y in r.example.responses] for r in some
            ]
        else:
            said = [
                stages.critiques(
                    some, n, judge, words, whole, whole.max_critique_tokens, seed
                )
                for n in (0, 1)
            ]
            values = [
                [float(stages.verdict(c) is True) for c in cs] for cs in zip(*said)
            ]
        return [
            _ranked(row, old, new) for row, (old, new) in zip(some, values, strict=True)
        ]

    rows = run("rank", rows, rank, judge)
    rows = stages.at_most(rows, whole.max_pairs, (whole.seed, 0))
    store.write((row.example for row in rows), out)
    return out


def _ranked(row, old, new):
    """The row as a pair, or dropped where the ranker sees no difference."""
    if old == new:
        return dataclasses.replace(row, dropped="the ranker calls them equal")
    feedback = Feedback(chosen=int(new > old), rater="ranker")
    return dataclasses.replace(
        row, example=dataclasses.replace(row.example, feedback=feedback)
    )


def feedback_pairs(whole: LLF, home: Path, say: Any, **settings: Any) -> Path:
    """The pairs of one round of learning from language feedback."""
    recipe = dataclasses.replace(whole, **settings)
    return make_pairs(recipe, recipe.align.model, home, 0, [], say)


def mixed(whole: LLF, home: Path, say: Any, share: float, error: float) -> Path:
    """A share of the pairs by language feedback, the others by a binary annotator."""
    out = home / "mixed"
    if not out.exists():
        language = store.read(feedback_pairs(whole, home, say))
        people = store.read(binary(whole, home / "people", say, error))
        count = round(share * min(len(language), len(people)))
        kept = [language[n] for n in range(count)]
        kept += [people[n] for n in range(count, min(len(language), len(people)))]
        store.write(iter(kept), out)
    return out


def nothing_said(example: Example, response: Any) -> str:
    """In the place of a critique: only that the answer could be better."""
    del example, response
    return "verdict bad ."


def facts(path: str | Path) -> dict[str, float]:
    """Number of pairs, mean scores of both sides, how often the chosen is better, worse."""
    pairs = store.read(path)
    values = []
    for example in (pairs[n] for n in range(len(pairs))):
        chosen = example.feedback.chosen or 0
        both = [oracle.rule(example, response) for response in example.responses]
        values.append([both[chosen], both[1 - chosen]])
    new, old = np.array(values).T
    return {
        "count": len(values),
        "chosen": round(float(new.mean()), 4),
        "rejected": round(float(old.mean()), 4),
        "better": round(float((new > old).mean()), 4),
        "worse": round(float((new < old).mean()), 4),
    }


Maker = Callable[..., Path]
ARMS: dict[str, tuple[Maker | None, dict[str, Any]]] = {
    **{
        f"binary{percent}": (binary, {"error": percent / 100})
        for percent in (0, 10, 20, 30, 40)
    },
    "binary10_cost4": (binary, {"error": 0.1, "times": 4}),
    "onpolicy_oracle": (two_samples, {"ranker": "oracle"}),
    "onpolicy_critic": (two_samples, {"ranker": "critic"}),
    "refine_nocritique": (
        feedback_pairs,
        {"feedback": nothing_said, "verify": "none"},
    ),
    "sft_refined": (feedback_pairs, {"verify": "none"}),
    "llf": (None, {"verify": "none"}),
    "llf_verified": (None, {"verify": "critic"}),
    "llf_oracle": (None, {"verify": "none", "feedback": oracle.feedback}),
    "llf_two_rounds": (None, {"verify": "none", "rounds": 2}),
    # A reward model of the pairs, and PPO against it.
    "llf_verified_ppo": (feedback_pairs, {"verify": "critic"}),
    **{
        f"llf{percent}_binary10": (mixed, {"share": percent / 100, "error": 0.1})
        for percent in (25, 50, 75)
    },
}
