"""One process leads, and tells the others what to do along with it.

So what a server, a judge or a user's code says need not be the same on all hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alanything_jax.data import store
from alanything_jax.sharding import distributed
from alanything_jax.training import rollout_file

# What is told, beside plain values and arrays: nothing that was sent is run.
_TOLD = {"Rolled": rollout_file.Rolled}


def led(run: Callable[[Callable], Any], together: Callable) -> Any:
    """`run(together)` by process 0 alone, but for `together`, in which all take part.

    Arguments of `together`, and what comes of `run`, are plain values, arrays and _TOLD.

    Raises RuntimeError: process 0 failed, on the others. Its own error, there.
    """
    if not distributed.several():
        return run(together)

    def called(*arguments):
        _tell(["call", arguments])
        return together(*arguments)

    if distributed.is_primary():
        try:
            return _tell(["done", run(called)])[1]
        except Exception as error:
            _tell(["failed", f"{type(error).__name__}: {error}"])
            raise
    while True:
        news, what = _tell(None)
        if news == "done":
            return what
        if news == "failed":
            raise RuntimeError(f"process 0 stopped: {what}")
        together(*what)


def _tell(value):
    """Process 0's value, on every process, as it went over the wire."""
    mine = store.to_json(value) if distributed.is_primary() else None
    return store.from_json(distributed.gather(mine)[0], _TOLD)
