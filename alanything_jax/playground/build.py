"""Preference pairs of the playground as a data set on disk, in shards.

Shard k is drawn from (seed, k) alone, so that one process, many, or Apache Beam write the
same bytes. Until all are there, they collect beside the data set:

    DIR.incomplete/recipe.json                        what is built; another is an error
    DIR.incomplete/shard-00007, shard-00007.json      a finished shard, and its size
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alanything_jax.data import store
from alanything_jax.playground import tasks

FILE = "recipe.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that the bytes depend on; see `tasks.pairs`."""

    pairs: int
    seed: int = 0
    error: float = 0.1
    split: str = "train"
    records_per_shard: int = 10_000

    def __post_init__(self):
        if self.pairs < 1 or self.records_per_shard < 1 or self.seed < 0:
            raise ValueError(
                f"{self}: pairs and records_per_shard must be at least 1, seed 0."
            )
        if not 0 <= self.error <= 1 or self.split not in ("train", "tune", "test"):
            raise ValueError(
                f"{self}: error must be in 0 .. 1, split train, tune or test."
            )

    @property
    def num_shards(self) -> int:
        """How many files."""
        return -(-self.pairs // self.records_per_shard)

    def records(self, shard: int) -> int:
        """How many records a shard holds: all the same but the last."""
        first = shard * self.records_per_shard
        return min(self.records_per_shard, self.pairs - first)


def make_shard(recipe: Recipe, folder: str, shard: int) -> int:
    """Write one shard and, once it is whole, its size beside it; returns its number."""
    seeds = np.random.SeedSequence([recipe.seed, shard])
    seed = int(seeds.generate_state(1, np.uint64)[0])
    made = tasks.pairs(
        recipe.records(shard), seed, recipe.error, recipe.split, files=True
    )
    first = shard * recipe.records_per_shard
    named = (
        dataclasses.replace(e, id=f"{recipe.split}-{recipe.seed}-{n}")
        for n, e in enumerate(made, first)
    )
    path = store.shard_path(Path(folder), shard)
    part = path.with_suffix(".part")
    size = store.write_shard(named, part)
    os.replace(part, path)
    _write_json(_size_path(path), size)
    return shard


def build(
    recipe: Recipe,
    out: Path,
    *,
    workers: int = 1,
    beam: bool = False,
    on_records: Callable[[int], None] = lambda done: None,
) -> int:
    """Make the data set, or the rest of one that was stopped.

    Args:
      out: a new directory.
      workers: processes; the bytes do not depend on it.
      beam: run the shards on Apache Beam's local runner.
      on_records: told how many records are done.

    Returns:
      How many shards were there already.

    Raises:
      ValueError: `out` is not empty, or an unfinished build of another recipe is there.
      ImportError: no Apache Beam.
    """
    aside = store.place(out)
    if beam:
        _import_beam()
    _claim(aside, recipe)
    paths = [store.shard_path(aside, n) for n in range(recipe.num_shards)]
    done = {n for n, p in enumerate(paths) if p.exists() and _size_path(p).exists()}
    todo = [n for n in range(recipe.num_shards) if n not in done]
    resumed = len(done)
    on_records(sum(map(recipe.records, done)))

    def finished(shard):
        done.add(shard)
        on_records(sum(map(recipe.records, done)))

    run = _on_beam if beam else _in_processes
    run(functools.partial(make_shard, recipe, str(aside)), todo, workers, finished)
    sizes = [tuple(json.loads(_size_path(p).read_text())) for p in paths]
    for path in paths:
        _size_path(path).unlink()
    store.publish(sizes, out)
    return resumed


def _claim(aside: Path, recipe: Recipe) -> None:
    """Start a build, or check that the one which is there makes the same."""
    place, wanted = aside / FILE, dataclasses.asdict(recipe)
    if place.exists():
        there = json.loads(place.read_text())
        if there != wanted:
            raise ValueError(
                f"{aside} is an unfinished build of {there}, not of {wanted}. Remove it, "
                "or give the same options to go on with it."
            )
        return
    aside.mkdir(parents=True, exist_ok=True)
    _write_json(place, wanted)


def _size_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _write_json(path: Path, value) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value) + "\n")
    os.replace(aside, path)


def _in_processes(
    make: Callable[[int], int],
    todo: Sequence[int],
    workers: int,
    finished: Callable[[int], None],
) -> None:
    if min(workers, len(todo)) <= 1:
        for shard in todo:
            finished(make(shard))
        return
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(todo)), spawn)
    try:
        futures = [pool.submit(make, shard) for shard in todo]
        for future in concurrent.futures.as_completed(futures):
            finished(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _import_beam():
    try:
        import apache_beam
    except ImportError as error:
        raise ImportError(
            "Apache Beam is not installed. pip install 'alanything_jax[beam]', in an "
            "environment of its own if its pins clash with yours; or leave out --beam, "
            "which makes the same bytes."
        ) from error
    return apache_beam


def _on_beam(
    make: Callable[[int], int],
    todo: Sequence[int],
    workers: int,
    finished: Callable[[int], None],
) -> None:
    """The same function, mapped by Beam; it tells nothing until the end."""
    beam = _import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    mode = "in_memory" if workers == 1 else "multi_processing"
    options = PipelineOptions([], direct_num_workers=workers, direct_running_mode=mode)
    with beam.Pipeline("DirectRunner", options) as pipeline:
        _ = pipeline | beam.Create(list(todo)) | beam.Reshuffle() | beam.Map(make)
    for shard in todo:
        finished(shard)
