"""From encoded groups to microbatches on their way to the device.

The order is a pure function of (seed, global step): an epoch is one seeded permutation,
a step is the next `groups_per_step` of the endless sequence of epochs. Resuming at any
step, on any number of hosts, is arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from alanything_jax.data import packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.schema import Batch


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def members(seed: int, step: int, groups_per_step: int, size: int) -> list[int]:
    """Which of `size` groups step number `step` (from 0) trains on."""
    places = range(step * groups_per_step, (step + 1) * groups_per_step)
    return [int(_permutation(seed, p // size, size)[p % size]) for p in places]


@dataclasses.dataclass(frozen=True)
class StepData:
    """One optimizer step: its microbatches and what to say if it goes wrong.

    Attributes:
      places: per microbatch, which of the step's groups has which row of the table.
      ids: the records. tokens: all but padding. fill: their share of the rows.
    """

    step: int
    microbatches: tuple[Batch, ...]
    places: tuple[dict[int, int], ...]
    ids: tuple[str, ...]
    tokens: int
    fill: float


@dataclasses.dataclass(frozen=True)
class StepSource:
    """Random access to steps, for Grain: `source[step] -> StepData`.

    Attributes:
      groups: the whole data set, encoded.
      layout: the fixed shape.
      groups_per_step, seed, couples: as in `members` and `packing.plan`.
      token_numbers: per name and group, arrays per branch (cached log-probs).
      shuffle: False keeps the data's order (evaluation); then the last step may be short.
      rows: those of a microbatch that this process fills; None = all.
    """

    groups: Sequence[EncodedGroup]
    layout: packing.Layout
    groups_per_step: int
    seed: int = 0
    couples: bool = True
    token_numbers: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None
    shuffle: bool = True
    rows: Sequence[int] | None = None

    def __post_init__(self):
        if not self.groups:
            raise ValueError(
                "no record is left to train on: every one was dropped or quarantined. "
                "See quarantine.jsonl in the run directory for the reasons."
            )

    def __getitem__(self, step: int) -> StepData:
        size = len(self.groups)
        if self.shuffle:
            chosen = members(self.seed, step, self.groups_per_step, size)
        else:
            first = step * self.groups_per_step
            chosen = list(range(first, min(first + self.groups_per_step, size)))
        groups = [self.groups[n] for n in chosen]
        planned = packing.plan(groups, self.layout, self.couples)
        numbers = {
            name: [values[n] for n in chosen]
            for name, values in (self.token_numbers or {}).items()
        }
        return StepData(
            step=step,
            microbatches=tuple(
                lay_out(groups, rows, self.layout, numbers, self.rows)
                for rows in planned
            ),
            places=tuple(packing.slots(rows) for rows in planned),
            ids=tuple(group.id for group in groups),
            tokens=sum(packing.group_length(group) for group in groups),
            fill=packing.fill(
                [row for rows in planned for row in rows], self.layout.row_tokens
            ),
        )

    def num_steps(self) -> int:
        """Steps that show every group once (the last may be short)."""
        return -(-len(self.groups) // self.groups_per_step)


def lay_out(
    groups: Sequence[EncodedGroup],
    rows: list[list[packing.Piece]],
    layout: packing.Layout,
    numbers: Mapping[str, Sequence[Sequence[np.ndarray]]],
    own: Sequence[int] | None = None,
) -> Batch:
    """As `packing.lay_out`, but token arrays hold only rows `own` of the microbatch.

    Tables and numbers of groups are of all rows: every process has them whole.
    """
    if own is None:
        return packing.lay_out(groups, rows, layout, numbers)
    change = dataclasses.replace
    empty = [
        change(
            group,
            prompt=group.prompt[:0],
            prompt_stream=None,
            branches=tuple(Branch(b.tokens[:0], b.scored[:0]) for b in group.branches),
        )
        for group in groups
    ]
    whole = packing.lay_out(empty, rows, change(layout, row_tokens=0))
    some = [rows[n] if n < len(rows) else [] for n in own]
    part = change(layout, rows=len(own), numbers=())
    batch = packing.lay_out(groups, some, part, numbers)
    # Responses were counted within `own`; -1 = not scored stays, by the last entry.
    size, places = layout.responses, packing.slots(rows)
    flat = np.full(layout.groups * size + 1, -1, np.int32)
    for group, slot in packing.slots(some).items():
        flat[slot * size : (slot + 1) * size] = places[group] * size + np.arange(size)
    return batch.replace(
        response=flat[batch.response],
        table=whole.table,
        numbers=batch.numbers | whole.numbers,
    )


def iterate(
    source: StepSource, start: int, stop: int, num_threads: int = 2
) -> Iterator[StepData]:
    """Steps `start` .. `stop - 1` in order, packed ahead of need by Grain's threads."""
    if start >= stop:
        return iter(())
    steps = grain.MapDataset.range(start, stop).map(source.__getitem__)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
    return iter(steps.to_iter_dataset(options))
