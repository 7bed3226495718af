"""The oracle: what a prompt asks for, a score of every attribute, a true critique.

A goal is kept in an example's `extra["goal"]` in words, which `read` gives back exactly:

    {"task": "t2i", "media": {"image": "two red circles left"}, "text": None, "keep": None}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data import media
from alanything_jax.playground import clips, pictures, tunes
from alanything_jax.playground.lexicon import CODECS, DIMENSIONS
from alanything_jax.playground.marks import Mark, by_dimension, checked, mark
from alanything_jax.schema import Example, Part, Response

WORLDS = {"image": pictures, "audio": tunes, "video": clips}
CODEC = {codec.kind: codec for codec in CODECS}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the oracle says of one response.

    Attributes:
      overall: 0 .. 1. dimensions: name -> 0 .. 1, of `lexicon.DIMENSIONS`.
      marks: everything looked at. broken: media that could not be read.
      compared: per medium (kind, what it shows, "wanted" or "said", of what), in words.
    """

    overall: float
    dimensions: dict[str, float]
    marks: tuple[Mark, ...]
    broken: tuple[str, ...] = ()
    compared: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return self.overall >= 1.0


def goal_of(example: Example) -> Mapping[str, Any]:
    """The goal of a playground prompt.

    Raises ValueError: the example is none of the playground's.
    """
    if "goal" not in example.extra:
        raise ValueError(
            f"record {example.id} has no goal: it is not of the playground."
        )
    return example.extra["goal"]


def score(example: Example, response: Response) -> Verdict:
    """Judge a response by the media and words in it."""
    goal = goal_of(example)
    parts = [part for message in response.messages for part in message.parts]
    kinds = [part.kind for part in parts if part.kind != "text"]
    again = [kind for n, kind in enumerate(kinds) if kind in kinds[:n]]
    found, broken = {}, []
    for part in parts:
        if part.kind == "text":
            continue
        try:
            array, _ = media.load(part)
            found.setdefault(part.kind, CODEC[part.kind].encode({}, array))
        except ValueError as error:
            broken.append(f"{part.kind}: {error}")
    text = " ".join(p.text or "" for p in parts if p.kind == "text").strip()
    wanted = [*goal["media"], *(["text"] if goal["text"] else [])]
    got = [*found, *(["text"] if text and goal["text"] else [])]
    marks = [_kind_mark(wanted, got, again)]
    per_part = []
    for name in wanted:
        some = _marks(goal, name, found, text) if name in got else []
        marks += some
        content = by_dimension(some)
        per_part.append(np.mean(list(content.values())) if content else 0.0)
    more = again or set(got) - set(wanted)
    overall = float(np.mean(per_part)) * (0.5 if more else 1.0)
    dimensions = {name: 0.0 for name in DIMENSIONS} | by_dimension(marks)
    return Verdict(
        overall, dimensions, tuple(marks), tuple(broken), _compared(goal, found, text)
    )


def _compared(goal, found, text):
    """Per kind what is shown, and what is wanted or said of it, in words."""
    out = [
        (kind, WORLDS[kind].see(found[kind]) if kind in found else "", "wanted", said)
        for kind, said in goal["media"].items()
    ]
    if goal["text"]:
        kind, true = goal["text"]
        out.append((kind, true, "said", text))
    more = [kind for kind in found if kind not in goal["media"]]
    out += [(kind, WORLDS[kind].see(found[kind]), "wanted", "") for kind in more]
    return tuple(out)


def _kind_mark(wanted, got, again):
    """The share of kinds that are both wanted and given; a second one is too many."""
    more = [*(g for g in got if g not in wanted), *again]
    shared = len(set(wanted) & set(got)) / (len(wanted) + len(more))
    return mark("kind", shared)


def _marks(goal, name, found, text):
    if name == "text":
        kind, said = goal["text"]
        world = WORLDS[kind]
        return world.compare(world.read(said), world.read(text))
    world = WORLDS[name]
    marks = world.judge(world.read(goal["media"][name]), found[name])
    if goal["keep"] is not None:
        same = float(np.mean(np.asarray(goal["keep"]) == found[name]))
        marks.append(mark("place", same))
    return marks


def critique(verdict: Verdict, dimension: str | None = None) -> str:
    """True language feedback: what is there, what should be, and a verdict.

    A small critic reads a medium first and compares word by word then; asked for the
    verdict at once, it learns none (kappa 0.00 after 2,000 steps, measured).

    Example:
      "shows three red circles left . wanted two but three red circle left .
      verdict bad .", and of a dimension
      "shows three red circles left . wanted two but three . number bad ."
    """
    name = dimension or "verdict"
    good = verdict.good if dimension is None else verdict.dimensions[dimension] >= 1
    said: list[str] = []
    for n, (kind, shown, asks, text) in enumerate(verdict.compared):
        world = WORLDS[kind]
        there = "" if shown == "nothing" else shown
        things = [world.things(world.read(words)) for words in (text, there)]
        if kind not in [other[0] for other in verdict.compared[:n]]:
            said.append(f"shows {shown or 'nothing'}")
        checks = checked(*things, dimension)
        said += [f"{asks} {checks}"] * bool(checks)
    said.append(f"{name} {'good' if good else 'bad'}")
    return " . ".join(said) + " ."


def feedback(example: Example, response: Response) -> str:
    """The oracle in a critic's place: a true critique."""
    return critique(score(example, response))


def rule(example: Example, response: Response) -> float:
    """The oracle in a verifier's place: the overall score."""
    return score(example, response).overall


def says_good(text: str, dimension: str | None = None) -> bool | None:
    """The verdict that a critique states; None where it states none."""
    words = text.split()
    for name, said in zip(words, words[1:]):
        if name == (dimension or "verdict") and said in ("good", "bad"):
            return said == "good"
    return None


def part(kind: str, codes: np.ndarray, files: bool = False) -> Part:
    """A medium from codes: as a file's bytes, or as the array a file would hold."""
    codec = CODEC[kind]
    meta = {"rate": codec.rate} if kind == "audio" else {}
    made = Part(kind, data=codec.decode({}, codes), meta=meta)
    return as_file(made) if files else made


def as_file(part: Part) -> Part:
    """The part with a file's bytes in place of an array."""
    if not isinstance(part.data, np.ndarray):
        return part
    return Part(part.kind, data=media.dump(part.kind, part.data, **part.meta))


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The oracle as a reward of `rewards.combine`: 0 .. 1.

    Attributes:
      dimension: one of `lexicon.DIMENSIONS`, "" for the overall score.
    """

    dimension: str = ""

    def __call__(self, prompt, response, record) -> float:
        """Raises ValueError: the prompt is none of the playground's."""
        example = Example(str(record.get("id", "")), tuple(prompt), extra=record)
        verdict = score(example, response)
        return verdict.dimensions[self.dimension] if self.dimension else verdict.overall
