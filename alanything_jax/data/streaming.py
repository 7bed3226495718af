"""Data that is read as it comes: a bounded, seeded order, and steps packed from it.

A window of `size` rows is read and gone through in a seeded order, then the next is read:
a row moves by less than `size` places, and where the order goes on after `count` rows is
arithmetic: whole windows are read past, without being decoded or encoded.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alanything_jax.data import groups, mixture, packing, pipeline, soft
from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import BadRecord, EncodedGroup
from alanything_jax.data.groups import Data
from alanything_jax.data.quarantine import Quarantine

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Reopened:
    """An iterable that begins anew each time: `Reopened(partial(groups.examples, path))`."""

    open: Callable[[], Iterable]

    def __iter__(self) -> Iterator:
        return iter(self.open())


def window(
    rows: Iterable[T], size: int, seed: int, count: int = 0, source: int = 0
) -> Iterator[T]:
    """The rows in endless epochs, shuffled within windows of `size`.

    Args:
      rows: a source that can be gone through again (a list, `Reopened`).
      count: how many rows were taken already.
      source: numbers the data set among several, whose orders differ.

    Raises ValueError: `size` is below 1, or the source is empty (or was read before).
    """
    if size < 1:
        raise ValueError(f"a window of {size} rows; it must hold one at least.")
    epoch, own = 0, (source,) if source else ()
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
            rng = np.random.default_rng([seed, epoch, number, *own])
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
    """Steps packed from the records of a recipe's data as they are read.

    Step n trains on the sound ones among rows n * G to (n + 1) * G - 1 of the order: a bad
    row leaves its place empty and shifts no other, so that resuming needs no record of it.
    A step without a sound row trains on those of the next step that has some. With
    weights, each data set has windows of its own; without, one follows the other.

    Several processes each read and encode the whole stream, and lay out their own rows.

    Attributes:
      needs: as `groups.encoded` takes them.
      listed: the list of bad records, added to; None = another process writes it.
      layout, groups_per_step, seed, couples: as in `pipeline.StepSource`.
      own: rows of a microbatch that this process fills; None = all.
      groups: none is kept.
    """

    data: Data
    needs: tuple[Any, Coder | None, int]
    listed: Path | None
    layout: packing.Layout
    groups_per_step: int
    seed: int = 0
    couples: bool = True
    own: tuple[int, ...] | None = None
    say: Callable[[str], None] = print
    groups: tuple[EncodedGroup, ...] = ()

    def steps(self, start: int, stop: int) -> Iterator[pipeline.StepData]:
        """Steps `start` .. `stop - 1`, made by a thread ahead of need.

        Raises:
          TooManyBad: after a window of records, more than `max_bad_share` were faulty.
          ValueError: no row of a step is sound, nor of a window's worth after it.
        """
        return ahead(self._steps(start, stop))

    def _steps(self, start, stop):
        bad = Quarantine(self.listed, self.data.max_bad_share)
        order, later = self._order(start), collections.deque()

        def read(step):
            first, seen = len(bad.entries), bad.seen
            rows = itertools.islice(order, self.groups_per_step)
            sound = list(groups.encoded(rows, self.data, self.needs, bad, self._check))
            bad.append(first, step + 1)
            if bad.seen // self.data.stream > seen // self.data.stream:
                bad.check()
            return sound

        for step in range(start, stop):
            found = later.popleft() if later else read(step)
            while not (found or any(later)):
                if len(later) * self.groups_per_step >= self.data.stream:
                    raise ValueError(
                        f"all rows of step {step + 1} and {len(later)} after it are left "
                        f"out ({bad.summary()}): see {self.listed} for the reasons."
                    )
                later.append(read(step + 1 + len(later)))
            found = found or next(filter(None, later))
            yield pipeline.pack(step, found, self.layout, self.couples, own=self.own)
        name = " + ".join(self.data.paths)
        self.say(f"stream {name}: {bad.seen} records read ({bad.summary()})")

    def _order(self, start):
        """(path, row, Example or its error) from step `start` on, endlessly."""
        data, windows = self.data, {}
        sources = [[path] for path in data.paths] if data.weights else [data.paths]
        for step in itertools.count(start):
            some = (self.seed, step, self.groups_per_step, data.weights or (1,))
            for source, n in mixture.shown(*some):
                if source not in windows:
                    read = functools.partial(groups.viewed, data, *sources[source])
                    windows[source] = window(
                        Reopened(read), data.stream, self.seed, n, source
                    )
                yield next(windows[source])

    def _check(self, group):
        """Raises ValueError: the group has no place in the layout."""
        if (size := len(group.branches)) > self.layout.responses:
            raise BadRecord("responses", f"{size}: raise data.stream_responses.")
        if missing := {*self.layout.numbers} - {*group.numbers}:
            raise BadRecord("feedback", f"the algorithm needs {sorted(missing)}.")
        packing.plan([group], self.layout, self.couples)


def ahead(items: Iterator[T], count: int = 4) -> Iterator[T]:
    """The same items, made by a thread up to `count` before they are asked for."""
    pool, end = futures.ThreadPoolExecutor(1), object()
    try:
        made = collections.deque(pool.submit(next, items, end) for _ in range(count))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def media_plans(encoders: Sequence[Any], patches: int) -> tuple[soft.MediaPlan, ...]:
    """What a row has of each encoder's patches.

    Raises ValueError: `patches` is 0, and there are encoders.
    """
    if encoders and not patches:
        raise ValueError(
            f"a stream does not tell how many patches of {encoders[0].name} its rows need: "
            "set compute.media_patches."
        )
    return tuple(soft.plan_of(encoder, patches) for encoder in encoders)
