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
from alanything_jax.playground.marks import Mark, by_dimension, mark
from alanything_jax.schema import Example, Part, Response

WORLDS = {"image": pictures, "audio": tunes, "video": clips}
CODEC = {codec.kind: codec for codec in CODECS}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the oracle says of one response.

    Attributes:
      overall: 0 .. 1. dimensions: name -> 0 .. 1, of `lexicon.DIMENSIONS`.
      marks: everything looked at. broken: media that could not be read.
    """

    overall: float
    dimensions: dict[str, float]
    marks: tuple[Mark, ...]
    broken: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return self.overall >= 1.0

    def faults(self, dimension: str | None = None) -> list[str]:
        """What is wrong in words, the worst first."""
        some = [m for m in self.marks if m.fault and dimension in (None, m.dimension)]
        return list(dict.fromkeys(m.fault for m in sorted(some, key=lambda m: m.score)))


def goal_of(example: Example) -> Mapping[str, Any]:
    """The goal of a playground prompt.

    Raises:
      ValueError: the example is none of the playground's.
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
    return Verdict(overall, dimensions, tuple(marks), tuple(broken))


def _kind_mark(wanted, got, again):
    """The share of kinds that are both wanted and given; a second one is too many."""
    missing = [w for w in wanted if w not in got]
    more = [*(g for g in got if g not in wanted), *again]
    shared = len(set(wanted) & set(got)) / (len(wanted) + len(more))
    fault = f"missing {missing[0]}" if missing else f"extra {more[0]}" if more else ""
    return mark("kind", shared, fault)


def _marks(goal, name, found, text):
    if name == "text":
        kind, said = goal["text"]
        world = WORLDS[kind]
        return world.compare(world.read(said), world.read(text))
    world = WORLDS[name]
    marks = world.judge(world.read(goal["media"][name]), found[name])
    if goal["keep"] is not None:
        same = float(np.mean(np.asarray(goal["keep"]) == found[name]))
        marks.append(mark("place", same, "the change is not right"))
    return marks


def critique(verdict: Verdict, dimension: str | None = None, most: int = 2) -> str:
    """True language feedback: a verdict, then at most `most` faults.

    Example:
      "verdict bad . three red circles , should be two . blue square not top ."
      "number bad . three red circles , should be two ."
    """
    name = dimension or "verdict"
    good = verdict.good if dimension is None else verdict.dimensions[dimension] >= 1
    if good:
        return f"{name} good ."
    faults = verdict.faults(dimension)[:most]
    return " . ".join([f"{name} bad", *faults]) + " ."


def feedback(example: Example, response: Response) -> str:
    """The oracle in a critic's place: a true critique."""
    return critique(score(example, response))


def rule(example: Example, response: Response) -> float:
    """The oracle in a verifier's place: the overall score."""
    return score(example, response).overall


def says_good(text: str, dimension: str | None = None) -> bool | None:
    """The verdict that a critique states; None where it states none."""
    words = text.split()
    name = dimension or "verdict"
    if words[:1] != [name] or len(words) < 2 or words[1] not in ("good", "bad"):
        return None
    return words[1] == "good"


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
