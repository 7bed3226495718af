"""Prompts, demonstrators and annotators: the playground's people.

Tasks: t2i, t2a, t2v (make what the words say), i2t, a2t, v2t (say what is there), ti2ti
(edit a picture and say what it shows now), choose (the right kind, or two kinds, of
output must be found from what the prompt wants to see, hear or watch).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alanything_jax.playground import oracle, pictures
from alanything_jax.playground.lexicon import DIMENSIONS
from alanything_jax.playground.oracle import WORLDS, part
from alanything_jax.schema import (
    Critique,
    Example,
    Feedback,
    Message,
    Part,
    Rating,
    Response,
)

TASKS = ("t2i", "i2t", "t2a", "a2t", "t2v", "v2t", "ti2ti", "choose")
_KIND = {"i": "image", "a": "audio", "v": "video"}
_ASK = {
    "t2i": ("draw", "paint", "show me", "make a picture of"),
    "t2a": ("play", "compose", "make a tune of"),
    "t2v": ("animate", "make a clip of"),
    "i2t": ("describe it", "tell what you see"),
    "a2t": ("describe it", "tell what you hear"),
    "v2t": ("describe it", "tell what you watch"),
}
_SENSE = {"image": "see", "audio": "hear", "video": "watch"}


def split_of(key: str) -> str:
    """Which split a combination of attributes belongs to: a tenth test, a tenth tune."""
    bucket = hashlib.sha256(key.encode()).digest()[0] % 10
    return {0: "test", 1: "tune"}.get(bucket, "train")


def prompts(
    split: str, count: int, seed: int, tasks: Sequence[str] = TASKS
) -> list[Example]:
    """`count` prompts, the tasks in turn; deterministic in (split, seed, tasks)."""
    rng = np.random.default_rng([seed, len(split), *split.encode()])
    return [
        prompt(tasks[n % len(tasks)], split, rng, f"{split}-{seed}-{n}")
        for n in range(count)
    ]


def prompt(task: str, split: str, rng: np.random.Generator, id: str) -> Example:
    """One prompt of a task, of a combination of attributes that its split owns."""
    parts, goal = _MAKE[task](task, split, rng)
    goal = {"task": task, "media": {}, "text": None, "keep": None} | goal
    return Example(id, (Message("user", tuple(parts)),), extra={"goal": goal})


def _text(said: str) -> Part:
    return Part("text", text=said)


def _sample(world, split, rng, parts=None):
    """A specification that its split owns, whatever the task that shows it."""
    while True:
        spec = world.sample(rng, parts)
        if split_of(world.key(spec)) == split:
            return spec


def _make_media(task, split, rng):
    world = WORLDS[_KIND[task[-1]]]
    said = world.say(_sample(world, split, rng))
    parts = [_text(f"{rng.choice(_ASK[task])} {said}")]
    return parts, {"media": {world.KIND: said}}


def _describe(task, split, rng):
    world = WORLDS[_KIND[task[0]]]
    spec = _sample(world, split, rng)
    shown = part(world.KIND, world.realise(spec, rng))
    parts = [_text(f"{rng.choice(_ASK[task])} "), shown]
    return parts, {"text": (world.KIND, world.say(spec))}


def _edit(task, split, rng):
    """Change the look of one item of a picture, and say what it shows then."""
    del task
    while True:
        scene = _sample(pictures, split, rng, 2)
        n = int(rng.integers(2))
        old, other = scene.items[n], scene.items[1 - n]
        field = str(rng.choice(["colour", "shape"]))
        options = {"colour": pictures.COLOUR_NAMES, "shape": pictures.SHAPES}[field]
        value = str(rng.choice(options))
        new = dataclasses.replace(old, **{field: value})
        items = tuple(new if m == n else scene.items[m] for m in range(2))
        after = pictures.Scene(tuple(sorted(items, key=pictures.code)))
        fits = pictures.code(new) not in (pictures.code(old), pictures.code(other))
        if fits and split_of(pictures.key(after)) == split:
            break
    codes = pictures.realise(scene, rng)
    aim = value if field == "colour" else value + "s" * (old.number > 1)
    said = f"change the {pictures.look(old)} to {aim} "
    keep = np.where(codes == pictures.code(old), pictures.code(new), codes)
    goal = {
        "media": {"image": pictures.say(after)},
        "text": ("image", pictures.say(after)),
        "keep": keep.tolist(),
    }
    return [_text(said), part("image", codes)], goal


def _choose(task, split, rng):
    """The kind of output follows from the verb; one prompt in four wants two kinds."""
    del task
    both = rng.random() < 0.25
    kinds = ("image", "audio") if both else (str(rng.choice(list(WORLDS))),)
    count = 1 if both else None
    specs = {kind: _sample(WORLDS[kind], split, rng, count) for kind in kinds}
    said = {kind: WORLDS[kind].say(spec) for kind, spec in specs.items()}
    wish = " and ".join(f"{_SENSE[kind]} {text}" for kind, text in said.items())
    return [_text(f"i want to {wish}")], {"media": said}


_MAKE = {
    **{task: _make_media for task in ("t2i", "t2a", "t2v")},
    **{task: _describe for task in ("i2t", "a2t", "v2t")},
    "ti2ti": _edit,
    "choose": _choose,
}


def answer(
    example: Example,
    rng: np.random.Generator,
    changes: int = 0,
    biased: bool = False,
    files: bool = False,
) -> Response:
    """A response to a prompt: right, with `changes` random mistakes, or by habit wrong."""
    goal = oracle.goal_of(example)

    def spoiled(world, said):
        spec = world.read(said)
        if biased:
            spec = world.bias(spec)
        for _ in range(changes):
            spec = world.change(spec, rng)
        return spec

    parts = []
    if goal["text"]:
        kind, said = goal["text"]
        world = WORLDS[kind]
        parts.append(_text(world.say(spoiled(world, said))))
    for kind, said in goal["media"].items():
        world = WORLDS[kind]
        spec = spoiled(world, said)
        codes = np.asarray(goal["keep"]) if goal["keep"] is not None else None
        if codes is None or spec != world.read(said):
            codes = world.realise(spec, rng)
        parts.append(part(kind, codes, files))
    return Response((Message("assistant", tuple(parts)),))


def demonstrate(example: Example, rng: np.random.Generator) -> Response:
    """A demonstrator of mixed skill: 45% right, 40% careless, 15% wrong by habit."""
    kind = rng.random()
    if kind < 0.45:
        return answer(example, rng)
    if kind < 0.85:
        return answer(example, rng, changes=int(rng.integers(1, 3)))
    return answer(example, rng, biased=True)


def demonstrations(count: int, seed: int = 0) -> Iterator[Example]:
    """Prompts with one demonstration each, of mixed skill."""
    rng = np.random.default_rng([seed, 1])
    for example in prompts("train", count, seed):
        yield dataclasses.replace(example, responses=(demonstrate(example, rng),))


def attempt(
    example: Example, rng: np.random.Generator, faulty: bool = False
) -> Response:
    """A response of any quality: right (45%, never if `faulty`), or up to three mistakes."""
    shares = np.array([0.0 if faulty else 0.45, 0.3, 0.15, 0.1])
    changes = int(rng.choice(4, p=shares / shares.sum()))
    return answer(example, rng, changes=changes)


def attempts(count: int, seed: int = 0, split: str = "train") -> Iterator[Example]:
    """Prompts with one response of any quality, and the oracle's feedback on it.

    Feedback: ratings 0-3 per dimension, a critique overall and one per dimension, and a
    right answer as the overall critique's refinement.
    """
    rng = np.random.default_rng([seed, 2])
    for example in prompts(split, count, seed):
        response = attempt(example, rng)
        feedback = feedback_on(example, (response,), answer(example, rng))
        yield dataclasses.replace(example, responses=(response,), feedback=feedback)


def feedback_on(
    example: Example, responses: Sequence[Response], best: Response, **extra: Any
) -> Feedback:
    """The oracle's ratings and critiques of responses."""
    verdicts = [oracle.score(example, response) for response in responses]
    ratings, critiques = [], []
    for n, verdict in enumerate(verdicts):
        for name in DIMENSIONS:
            value = round(3 * verdict.dimensions[name], 4)
            said = oracle.critique(verdict, name)
            ratings.append(Rating(n, name, value, said, "oracle"))
            critiques.append(Critique(said, n, name, rater="oracle"))
        critiques.append(
            Critique(oracle.critique(verdict), n, None, best, rater="oracle")
        )
    return Feedback(ratings=tuple(ratings), critiques=tuple(critiques), **extra)


def pairs(
    count: int,
    seed: int = 0,
    error: float = 0.0,
    split: str = "train",
    files: bool = False,
) -> Iterator[Example]:
    """Preference pairs by a noisy annotator, with the oracle's feedback.

    Args:
      error: how often the annotator prefers the worse response.
      files: media as PNG, WAV and GIF bytes instead of arrays.
    """
    rng = np.random.default_rng([seed, 3])
    for example in prompts(split, count, seed):
        while True:
            sides = [
                answer(
                    example,
                    rng,
                    changes=int(rng.integers(3)),
                    biased=bool(rng.random() < 0.2),
                )
                for _ in range(2)
            ]
            scores = [oracle.score(example, side).overall for side in sides]
            if scores[0] != scores[1]:
                break
        chosen = int(scores[1] > scores[0])
        if rng.random() < error:
            chosen = 1 - chosen
        feedback = feedback_on(
            example,
            sides,
            answer(example, rng),
            chosen=chosen,
            rater=f"annotator with error rate {error}",
        )
        pair = dataclasses.replace(example, responses=tuple(sides), feedback=feedback)
        yield as_files(pair) if files else pair


def as_files(example: Example) -> Example:
    """The example with the bytes of a PNG, WAV or GIF in place of every array."""

    def turned(messages):
        return tuple(
            dataclasses.replace(m, parts=tuple(map(oracle.as_file, m.parts)))
            for m in messages
        )

    feedback = example.feedback
    # Critiques share their refinement: it is turned once.
    shared = {id(c.refinement): c.refinement for c in feedback.critiques}
    refined = {n: Response(turned(r.messages)) for n, r in shared.items() if r}
    critiques = tuple(
        dataclasses.replace(c, refinement=refined.get(id(c.refinement)))
        for c in feedback.critiques
    )
    return dataclasses.replace(
        example,
        prompt=turned(example.prompt),
        responses=tuple(Response(turned(r.messages)) for r in example.responses),
        feedback=dataclasses.replace(feedback, critiques=critiques),
    )
