"""The playground as a data source: `playground:NAME/COUNT[/SEED[/ERROR[/SPLIT]]]`.

SPLIT is train, tune or test, of lessons and demonstrations always train.

prompts         no answer
demonstrations  one answer of mixed skill
attempts        one answer with the oracle's feedback
pairs           two answers, a noisy choice, the oracle's feedback
lessons         all that a base model learns: to answer, to criticise, to refine
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from alanything_jax.data import views
from alanything_jax.playground import oracle, tasks
from alanything_jax.playground.lexicon import DIMENSIONS
from alanything_jax.schema import Example, Message, Part, Response


def examples(path: str) -> Iterator[Example]:
    """The examples that a path names.

    Raises ValueError: it is not of the form above.
    """
    name, _, rest = path.removeprefix("playground:").partition("/")
    numbers = rest.split("/")
    try:
        count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0
        error = float(numbers[2]) if len(numbers) > 2 else 0.0
        split = numbers[3] if len(numbers) > 3 else "train"
        if split not in ("train", "tune", "test"):
            raise ValueError(split)
        make = {
            "prompts": lambda: iter(tasks.prompts(split, count, seed)),
            "demonstrations": lambda: tasks.demonstrations(count, seed),
            "attempts": lambda: tasks.attempts(count, seed, split),
            "pairs": lambda: tasks.pairs(count, seed, error, split),
            "lessons": lambda: lessons(count, seed),
        }[name]
    except (KeyError, ValueError) as problem:
        raise ValueError(
            f"{path!r}: write playground:NAME/COUNT[/SEED[/ERROR[/SPLIT]]] with NAME one of "
            "prompts, demonstrations, attempts, pairs, lessons."
        ) from problem
    return make()


def lessons(count: int, seed: int = 0) -> Iterator[Example]:
    """A base model's mixture: 45% answers, 20% critiques, 35% refinements of what is bad.

    Half of the critiques are overall, half of one dimension.
    """
    rng, words = np.random.default_rng([seed, 4]), views.templates("playground")
    kinds = rng.choice(3, count, p=[0.45, 0.2, 0.35])
    for example, kind in zip(tasks.prompts("train", count, seed), kinds):
        if kind == 0:
            said = tasks.demonstrate(example, rng)
            yield dataclasses.replace(example, responses=(said,))
            continue
        response = tasks.attempt(example, rng, faulty=kind == 2)
        verdict = oracle.score(example, response)
        if kind == 1:
            name = str(rng.choice(DIMENSIONS)) if rng.random() < 0.5 else None
            ask = views.ask_critique(example, response, words, name)
            text = Part("text", text=oracle.critique(verdict, name))
            said = Response((Message("assistant", (text,)),))
        else:
            critique = oracle.critique(verdict)
            ask = views.ask_refinement(example, response, critique, words)
            said = tasks.answer(example, rng)
        yield Example(example.id, ask, (said,), extra=dict(example.extra))
