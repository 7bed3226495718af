"""Checkpoints by Orbax: written aside, committed at the end, saved while training goes on.

What a checkpoint holds: step, trained arrays, optimizer state. Frozen arrays are read
again from their source; the order of the data is a function of the step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from alanything_jax.sharding import distributed


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the last good one is untouched."""


@contextlib.contextmanager
def manager(directory: Any, keep: int) -> Iterator[Any]:
    """An Orbax checkpointer for a run; leaving it waits for the save in flight.

    Args:
      directory: a path, or an `epath.Path` into a bucket. All processes share it.
    """
    # Orbax logs a failed save with its traceback and raises it too: once is enough.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    policies = ocp.training.preservation_policies
    local = isinstance(directory, Path)
    with ocp.training.Checkpointer(
        directory.absolute() if local else directory,
        preservation_policy=policies.LatestN(keep),
        cleanup_tmp_directories=True,
    ) as checkpoints:
        # It would ask JAX for a stop at each save, and with steps: JAX, which counts on a
        # number that grows, would then miss the loop's own questions.
        checkpoints._manager.reached_preemption = lambda step: False
        yield checkpoints


def latest_step(checkpoints: Any) -> int | None:
    """The newest complete checkpoint's step, or None."""
    return None if checkpoints.latest is None else int(checkpoints.latest.step)


def save(checkpoints: Any, step: int, state: Any) -> None:
    """Start saving; waits only for a save that is still in flight.

    Raises CheckpointError: the disk refused; names the last good checkpoint.
    """
    try:
        checkpoints.save_async(step, state, force=True)
    except (OSError, ValueError, RuntimeError) as error:
        if distributed.lost_peer(error):
            raise
        raise failed(checkpoints, step, error) from error


def wait(checkpoints: Any, step: int) -> None:
    """Block until the last save is committed. Raises CheckpointError as `save` does."""
    try:
        checkpoints.wait()
    except (OSError, ValueError, RuntimeError) as error:
        if distributed.lost_peer(error):
            raise
        raise failed(checkpoints, step, error) from error


def failed(checkpoints: Any, step: int, error: Exception) -> CheckpointError:
    """What to tell the person whose disk is full."""
    checkpoints.reload()
    good = latest_step(checkpoints)
    return CheckpointError(
        f"the checkpoint of step {step} could not be written to {checkpoints.directory}: "
        f"{error}. The last good one is of step {good}. Free some space (or lower "
        "train.keep) and run the same command again: it goes on from there."
    )


def restore(checkpoints: Any, state: Any, step: int | None = None) -> Any:
    """The saved state in the shapes, dtypes and shardings of `state`."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    return checkpoints.load(step, abstract)
