"""`jax.jit` with shardings: what pjit became. Placement of batches and parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alanything_jax.schema import Batch
from alanything_jax.sharding.rules import Rules, named


def own_rows(mesh: Mesh, rules: Rules, rows: int) -> np.ndarray:
    """Which of a microbatch's rows lie on devices of this process: increasing indices."""
    sharding = named(mesh, (rows,), ("batch",), rules)
    places = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[place] for place in places]))


def place(value: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, or that lies on the mesh, laid out so."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        # It was read by shards; where it lies well it is not touched.
        if value.sharding.is_equivalent_to(sharding, value.ndim):
            return value
        return jax.jit(lambda x: x, out_shardings=sharding)(value)
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    # `device_put` would send all of it around, to see that it is the same everywhere.
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda at: value[at])


def fetch(value: jax.Array) -> np.ndarray:
    """An array of the mesh, whole, on every process; all must call it."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def place_batch(
    batch: Batch, mesh: Mesh, rules: Rules, whole: bool | None = None
) -> Batch:
    """A numpy microbatch on the mesh: rows over the `batch` axes, tables everywhere.

    Args:
      batch: with this process's `own_rows` alone, or, if `whole`, with all rows.
    """
    local = batch.tokens.shape[0]
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows, own = local, np.arange(local)
    if not (whole or everywhere.is_fully_addressable):
        # Any number of rows that divides shows this process's share.
        rows = local * mesh.size // len(own_rows(mesh, rules, mesh.size))
        own = own_rows(mesh, rules, rows)

    def put(name, value):
        by_row = name not in ("table",) and value.ndim >= 2
        by_row &= value.shape[:1] == (local,) and not name.startswith("group:")
        if not by_row:
            return place(value, everywhere)
        axes = ("batch",) + (None,) * (value.ndim - 1)
        sharding = named(mesh, (rows, *value.shape[1:]), axes, rules)
        if sharding.is_fully_addressable:
            return jax.device_put(value, sharding)

        def piece(index):
            there = np.searchsorted(own, np.arange(rows)[index[0]])
            return value[(there, *index[1:])]

        shape = (rows, *value.shape[1:])
        return jax.make_array_from_callback(shape, sharding, piece)

    length = batch.tokens.shape[1]
    fields = {
        name: put(name, value)
        for name, value in vars(batch).items()
        if name not in ("numbers", "media")
    }
    numbers = {
        name: put(name if value.shape[1:] == (length,) else "group:", np.asarray(value))
        for name, value in batch.numbers.items()
    }
    media = jax.tree.map(lambda x: put("media", x), batch.media)
    return Batch(**fields, numbers=numbers, media=media)


def jit_step(function: Any, state_shardings: Any, donate: tuple[int, ...]) -> Any:
    """A compiled update whose state comes out sharded as it went in."""
    return jax.jit(function, donate_argnums=donate, out_shardings=state_shardings)
