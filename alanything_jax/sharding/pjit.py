"""`jax.jit` with shardings: what pjit became. Placement of batches and parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alanything_jax.schema import Batch
from alanything_jax.sharding.rules import Rules, named


def place_batch(batch: Batch, mesh: Mesh, rules: Rules) -> Batch:
    """A numpy microbatch on the mesh: rows over the `batch` axes, tables everywhere."""
    rows = batch.tokens.shape[0]
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(name, value):
        by_row = name not in ("table",) and value.ndim >= 2
        by_row &= value.shape[:1] == (rows,) and not name.startswith("group:")
        if not by_row:
            return jax.device_put(value, everywhere)
        axes = ("batch",) + (None,) * (value.ndim - 1)
        return jax.device_put(value, named(mesh, value.shape, axes, rules))

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
    media = jax.tree.map(lambda x: jax.device_put(x, everywhere), batch.media)
    return Batch(**fields, numbers=numbers, media=media)


def jit_step(function: Any, state_shardings: Any, donate: tuple[int, ...]) -> Any:
    """A compiled update whose state comes out sharded as it went in."""
    return jax.jit(function, donate_argnums=donate, out_shardings=state_shardings)
