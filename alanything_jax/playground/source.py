"""The playground as a data source: `playground:NAME/COUNT[/SEED[/ERROR]]`.

prompts         no answer
demonstrations  one answer of mixed skill
attempts        one answer with the oracle's feedback
pairs           two answers, a noisy choice, the oracle's feedback
lessons         all that a base model learns: to answer, to criticise, to refine
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alanything_jax.data import views
from alanything_jax.playground import tasks
from alanything_jax.schema import Example


def examples(path: str) -> Iterator[Example]:
    """The examples that a path names.

    Raises:
      ValueError: it is not of the form above.
    """
    name, _, rest = path.removeprefix("playground:").partition("/")
    numbers = rest.split("/")
    try:
        count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0
        error = float(numbers[2]) if len(numbers) > 2 else 0.0
        make = {
            "prompts": lambda: iter(tasks.prompts("train", count, seed)),
            "demonstrations": lambda: tasks.demonstrations(count, seed),
            "attempts": lambda: tasks.attempts(count, seed),
            "pairs": lambda: tasks.pairs(count, seed, error),
            "lessons": lambda: lessons(count, seed),
        }[name]
    except (KeyError, ValueError) as problem:
        raise ValueError(
            f"{path!r}: write playground:NAME/COUNT[/SEED[/ERROR]] with NAME one of "
            "prompts, demonstrations, attempts, pairs, lessons."
        ) from problem
    return make()


def lessons(count: int, seed: int = 0) -> Iterator[Example]:
    """A base model's mixture: 45% answers, 25% critiques, 30% refinements of what is bad."""
    rng = np.random.default_rng([seed, 4])
    kinds = rng.choice(3, count, p=[0.45, 0.25, 0.3])
    words = views.templates("playground")
    answers = tasks.demonstrations(int((kinds == 0).sum()), seed)
    judged = tasks.attempts(int((kinds == 1).sum()), seed + 1)
    faulty = (
        example
        for example in tasks.attempts(4 * count, seed + 2)
        if not example.feedback.critiques[-1].text.startswith("verdict good")
    )
    for kind in kinds:
        if kind == 0:
            yield next(answers)
            continue
        view = ("answers", "critiques", "refinements")[kind]
        options = [
            e
            for e in views.of(next(judged if kind == 1 else faulty), view, words)
            if kind == 1 or e.prompt[-1].text.startswith("verdict")
        ]
        # The last one is the overall critique: half of the critiques are overall.
        last = kind == 2 or rng.random() < 0.5
        yield options[-1] if last else options[int(rng.integers(len(options)))]
