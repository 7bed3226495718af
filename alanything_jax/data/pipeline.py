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
from absl import flags

from alanything_jax.data import mixture, packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.schema import Batch


def members(seed: int, step: int, groups_per_step: int, size: int) -> list[int]:
    """Which of `size` groups step number `step` (from 0) trains on."""
    places = range(step * groups_per_step, (step + 1) * groups_per_step)
    return [int(mixture.permutation(seed, p // size, size)[p % size]) for p in places]


@dataclasses.dataclass(frozen=True)
class StepData:
    """One optimizer step: its microbatches and what to say if it goes wrong.

    Attributes:
      places: per microbatch, which of the step's groups has which row of the table.
      ids: the records. tokens: all but padding. fill: their share of the rows.
      facts: more numbers for the step's line of metrics.
    """

    step: int
    microbatches: tuple[Batch, ...]
    places: tuple[dict[int, int], ...]
    ids: tuple[str, ...]
    tokens: int
    fill: float
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
      weights: shares of the groups' sources in every step; () = one order over all.
      workers: processes that pack steps; 0 = threads of this one.
    """

    groups: Sequence[EncodedGroup]
    layout: packing.Layout
    groups_per_step: int
    seed: int = 0
    couples: bool = True
    token_numbers: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None
    shuffle: bool = True
    rows: Sequence[int] | None = None
    weights: Sequence[float] = ()
    workers: int = 0

    def __post_init__(self):
        if not self.groups:
            raise ValueError(
                "no record is left to train on: every one was dropped or quarantined. "
                "See quarantine.jsonl in the run directory for the reasons."
            )

    @functools.cached_property
    def _by_source(self) -> list[list[int]]:
        """The places of each source's groups."""
        found: list[list[int]] = [[] for _ in self.weights]
        for place, group in enumerate(self.groups):
            found[group.source].append(place)
        return found

    def members(self, step: int) -> list[int]:
        """Which groups a step trains on."""
        size, some = len(self.groups), (self.seed, step, self.groups_per_step)
        if not self.shuffle:
            first = step * self.groups_per_step
            return list(range(first, min(first + self.groups_per_step, size)))
        if not self.weights:
            return members(*some, size)
        places = self._by_source
        mixed = mixture.members(*some, [len(own) for own in places], self.weights)
        return [places[source][n] for source, n in mixed]

    def __getitem__(self, step: int) -> StepData:
        chosen = self.members(step)
        numbers = {
            name: [values[n] for n in chosen]
            for name, values in (self.token_numbers or {}).items()
        }
        groups = [self.groups[n] for n in chosen]
        return pack(step, groups, self.layout, self.couples, numbers, self.rows)

    def steps(self, start: int, stop: int) -> Iterator[StepData]:
        """See `iterate`."""
        return iterate(self, start, stop, workers=self.workers)

    def num_steps(self) -> int:
        """Steps that show every group once (the last may be short)."""
        return -(-len(self.groups) // self.groups_per_step)


def pack(
    step: int,
    groups: Sequence[EncodedGroup],
    layout: packing.Layout,
    couples: bool = True,
    numbers: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None,
    own: Sequence[int] | None = None,
) -> StepData:
    """The groups of a step in microbatches; `numbers` and `own` as `lay_out` takes them."""
    planned = packing.plan(groups, layout, couples)
    return StepData(
        step=step,
        microbatches=tuple(
            lay_out(groups, rows, layout, numbers or {}, own) for rows in planned
        ),
        places=tuple(packing.slots(rows) for rows in planned),
        ids=tuple(group.id for group in groups),
        tokens=sum(packing.group_length(group) for group in groups),
        fill=packing.fill([row for rows in planned for row in rows], layout.row_tokens),
    )


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
            prompt_soft=None,
            branches=tuple(Branch(b.tokens[:0], b.scored[:0]) for b in group.branches),
        )
        for group in groups
    ]
    whole = packing.lay_out(empty, rows, change(layout, row_tokens=0, media=()))
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
    source: StepSource, start: int, stop: int, num_threads: int = 2, workers: int = 0
) -> Iterator[StepData]:
    """Steps `start` .. `stop - 1` in order, packed ahead of need by Grain's threads, or
    by worker processes, which Python's lock does not keep from decoding at once."""
    if start >= stop:
        return iter(())
    steps = grain.MapDataset.range(start, stop).map(source.__getitem__)
    if workers:
        num_threads = 1
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
    ahead = steps.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain has some of its own.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=workers)
        ahead = ahead.mp_prefetch(processes, worker_init_fn=_off_the_chips)
    return iter(ahead)


def _off_the_chips(worker: int, workers: int) -> None:
    """A chip belongs to one process: the one that trains."""
    import jax

    jax.config.update("jax_platforms", "cpu")
