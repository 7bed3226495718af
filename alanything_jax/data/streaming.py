"""Data that is read as it comes: a bounded, seeded order, and steps packed from it.

A window of `size` rows is read and gone through in a seeded order, then the next is read:
a row moves by less than `size` places, and where the order goes on after `count` rows is
arithmetic: whole windows are read past, without being decoded or encoded.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from alanything_jax.data import packing, pipeline
from alanything_jax.data.encode import BadRecord, EncodedGroup
from alanything_jax.schema import Example

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Reopened:
    """An iterable that begins anew each time: `Reopened(partial(groups.examples, path))`."""

    open: Callable[[], Iterable]

    def __iter__(self) -> Iterator:
        return iter(self.open())


def window(rows: Iterable[T], size: int, seed: int, count: int = 0) -> Iterator[T]:
    """The rows in endless epochs, shuffled within windows of `size`.

    Args:
      rows: a source that can be gone through again (a list, `Reopened`).
      count: how many rows were taken already.

    Raises ValueError: `size` is below 1, or the source is empty (or was read before).
    """
    if size < 1:
        raise ValueError(f"a window of {size} rows; it must hold one at least.")
    epoch = 0
    while True:
        total, source = 0, iter(rows)
        for number in itertools.count():
            held = list(itertools.islice(source, size))
            if not held:
                break
            total += len(held)
            if count >= len(held):
                count -= len(held)
                continue
            rng = np.random.default_rng([seed, epoch, number])
            for place in rng.permutation(len(held))[count:]:
                yield held[place]
            count = 0
        if not total:
            raise ValueError(
                "the stream is empty. If it can be read only once, such as a generator, "
                "wrap what makes it: Reopened(make)."
            )
        # Further epochs that were gone through are not read again.
        epoch, count = epoch + 1 + count // total, count % total


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """Steps packed from a stream, one after another.

    Step n trains on the sound ones among rows n * G to (n + 1) * G - 1 of the order: a bad
    row leaves its place empty and shifts no other, so that resuming needs no record of it.

    Attributes:
      rows: (row number, Example or its error), such as of `groups.examples`.
      encode: Example -> group; raises BadRecord or another ValueError for a bad one.
      on_bad: told (row number, error) of each bad row.
      layout, groups_per_step, seed, couples: as in `pipeline.StepSource`.
      size: rows of the shuffle window.
      own: rows of a microbatch that this process fills; None = all.
    """

    rows: Iterable[tuple[int, Example | Exception]]
    encode: Callable[[Example], EncodedGroup]
    on_bad: Callable[[int, Exception], None]
    layout: packing.Layout
    groups_per_step: int
    size: int = 1024
    seed: int = 0
    couples: bool = True
    own: tuple[int, ...] | None = None

    def steps(self, start: int, stop: int) -> Iterator[pipeline.StepData]:
        """Steps `start` .. `stop - 1`.

        Raises ValueError: every row of a step is bad.
        """
        order = window(self.rows, self.size, self.seed, start * self.groups_per_step)
        for step in range(start, stop):
            groups = list(self._sound(itertools.islice(order, self.groups_per_step)))
            if not groups:
                raise ValueError(
                    f"all {self.groups_per_step} rows of step {step} are bad."
                )
            yield pipeline.pack(step, groups, self.layout, self.couples, own=self.own)

    def _sound(self, rows):
        for number, example in rows:
            try:
                if isinstance(example, Exception):
                    raise example
                group = self.encode(example)
                if len(group.branches) > self.layout.responses:
                    raise BadRecord(
                        "responses",
                        f"{len(group.branches)}; the layout has {self.layout.responses}.",
                    )
            except ValueError as error:
                self.on_bad(number, error)
                continue
            yield group
