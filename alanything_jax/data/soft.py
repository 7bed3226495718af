"""Soft tokens: media that encoders read, at the places of a sequence's placeholders.

tokens   a  <img> <img> <img> b       one medium of three outputs
places      1     2     3
position 0  1     1     1     2 ...   M-RoPE: start + the place in its grid
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.schema import Medium

# Arrays whose numbers tell patches that see each other: kept apart between media.
NUMBERED = ("segment", "window")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A medium and the places [s] of its outputs in a sequence."""

    medium: Medium
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A medium of an encoded group, whose arrays are made again whenever it is laid out.

    So pixels are in memory for the rows at hand alone, never for a whole data set.

    Attributes:
      encoder: as in `Medium`. patches: how many it has.
      places: [s] int32, in its prompt or branch.
      digest: a hash of its arrays.
    """

    make: Callable[[], Medium]
    encoder: str
    patches: int
    places: np.ndarray
    digest: bytes


def waiting(make: Callable[[], Medium], medium: Medium, places: np.ndarray) -> Waiting:
    """What is kept of a medium that `make` made."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(medium.arrays):
        digest.update(np.ascontiguousarray(medium.arrays[name]).view(np.uint8).data)
    size = len(medium.arrays["segment"])
    return Waiting(make, medium.encoder, size, places, digest.digest())


@dataclasses.dataclass(frozen=True)
class Placement:
    """What media add to a sequence of n tokens.

    Attributes:
      media: in order. position: [3, n] int32. span: [n] int32.
    """

    media: tuple[Waiting, ...]
    position: np.ndarray
    span: np.ndarray

    def part(self, start: int, stop: int) -> Placement:
        """Of tokens start .. stop - 1."""
        inside = [w for w in self.media if start <= w.places[0] < stop]
        media = tuple(dataclasses.replace(w, places=w.places - start) for w in inside)
        here = slice(start, stop)
        return Placement(media, self.position[:, here], self.span[here])


@dataclasses.dataclass(frozen=True)
class MediaPlan:
    """What one encoder has of a row: P patches, `merge` to an output.

    Attributes:
      budget: P; 0 = as many as the fullest row needs. align: P is a multiple.
      arrays: name -> (trailing shape, dtype), as in `Medium.arrays`.
    """

    name: str
    budget: int
    merge: int
    align: int
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]


def plan_of(encoder: Any, budget: int) -> MediaPlan:
    """The plan of an encoder's config (`models.encoders`); the budget is rounded up."""
    whole = -(-budget // encoder.align) * encoder.align
    return MediaPlan(
        encoder.name, whole, encoder.merge, encoder.align, tuple(encoder.arrays)
    )


def find(tokens: np.ndarray, waiting: Mapping[int, list[Medium]]) -> list[Placed]:
    """The media of one row, taken from the front of what waits for each placeholder.

    Raises ValueError: placeholders and outputs differ in number.
    """
    out = []
    for token, items in waiting.items():
        places = np.flatnonzero(tokens == token)
        at = 0
        while at < len(places):
            size = len(items[0].outputs) if items else 0
            if size == 0 or at + size > len(places):
                raise ValueError(
                    f"{len(places)} placeholders (token {token}) in a row do not fit its "
                    f"media: the next needs {size or 'to be given'} of the "
                    f"{len(places) - at} that are left. Give each medium its placeholders."
                )
            out.append(Placed(items.pop(0), places[at : at + size]))
            at += size
    return sorted(out, key=lambda placed: placed.places[0])


def spans(length: int, placed: Sequence[Placed]) -> np.ndarray:
    """[length] int32: images numbered from 1, 0 elsewhere."""
    out = np.zeros(length, np.int32)
    for number, item in enumerate(placed, start=1):
        if item.medium.kind == "image":
            out[item.places] = number
    return out


def positions(length: int, placed: Sequence[Placed], advance: str) -> np.ndarray:
    """[3, length] int32 rotary positions; a medium's are its grid, from where it starts.

    Behind a medium goes on one past its largest position; with advance "grid", past its
    height or width alone (transformers 5.23).
    """
    out = np.zeros((3, length), np.int32)
    at = start = 0
    for item in placed:
        grid = item.medium.grid
        if grid is None:
            grid = np.repeat(np.arange(len(item.places))[:, None], 3, axis=1)
        # A video may stand in several runs, with text between its frames.
        cuts = 1 + np.flatnonzero(np.diff(item.places) != 1)
        for run, turns in zip(
            np.split(item.places, cuts), np.split(grid, cuts), strict=True
        ):
            first, end = int(run[0]), int(run[-1]) + 1
            # Time starts anew in each run: what lies between tells it.
            turns = turns - [turns[0, 0], 0, 0]
            out[:, at:first] = start + np.arange(first - at)
            start += first - at
            out[:, first:end] = start + turns.T
            start += int((turns[:, 1:] if advance == "grid" else turns).max()) + 1
            at = end
    out[:, at:] = start + np.arange(length - at)
    return out


def lay_out(
    rows: Sequence[Sequence[Placed]], plan: MediaPlan, row_tokens: int
) -> dict[str, np.ndarray]:
    """One entry of `Batch.media`: arrays [B, P, ...], segment [B, P], slot [B, T].

    Raises ValueError: a row needs more than its budget.
    """
    own = [[p for p in row if p.medium.encoder == plan.name] for row in rows]
    needs = [sum(len(p.medium.arrays["segment"]) for p in row) for row in own]
    size = plan.budget or max(-(-max(needs) // plan.align) * plan.align, plan.align)
    if max(needs, default=0) > size:
        raise ValueError(
            f"a row needs {max(needs)} patches for {plan.name}, its budget is {size}."
        )
    shape = (len(rows), size)
    out = {name: np.zeros((*shape, *tail), kind) for name, tail, kind in plan.arrays}
    out["segment"] = np.zeros(shape, np.int32)
    out["slot"] = np.full((len(rows), row_tokens), -1, np.int32)
    for r, row in enumerate(own):
        at = 0
        for item in row:
            arrays, count = item.medium.arrays, len(item.medium.arrays["segment"])
            here = slice(at, at + count)
            for name in [*(name for name, _, _ in plan.arrays), "segment"]:
                value = arrays[name]
                if name in NUMBERED:
                    value = np.where(value > 0, value + out[name][r].max(), 0)
                out[name][r, here] = value
            out["slot"][r, item.places] = at // plan.merge + item.medium.outputs
            at += count
    return out
