"""Where the time of a run goes: goodput is the share spent on steps that were kept.

`goodput.jsonl` in the run directory has a line for each step, with the seconds since the
line before it by kind, and a line for each restart. It depends on the clock, so nothing
of it is in metrics.jsonl.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from alanything_jax.data.files import lines
from alanything_jax.sharding import distributed
from alanything_jax.training import run_dir

KINDS = ("step", "init", "compile", "data wait", "checkpoint", "evaluation", "lost")
_COMPILING = "/jax/core/compile/"


@dataclasses.dataclass
class Recorder:
    """Seconds by kind since the last line; written by process 0 only."""

    path: Path
    spent: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # Disjoint (start, end) of tracing and compiling, which nest.
    compiled: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Count what runs inside as `kind`, but for what JAX compiles there."""
        began, self.compiled[:] = time.time(), []
        try:
            yield
        finally:
            compiling = sum(end - start for start, end in self.compiled)
            self.spent["compile"] += compiling
            self.spent[kind] += max(0.0, time.time() - began - compiling)

    def line(self, step: int) -> None:
        """Write what was spent up to the end of a step."""
        seconds = {kind: round(n, 4) for kind, n in self.spent.items()}
        run_dir.append(self.path, {"step": step, "seconds": seconds})
        self.spent.clear()

    def heard(self, event: str, start: float, end: float, **_) -> None:
        """JAX's report of a span of time, once it is over."""
        if event.startswith(_COMPILING):
            outside = [span for span in self.compiled if span[0] < start]
            self.compiled[:] = [*outside, (start, end)]


@contextlib.contextmanager
def record(path: Path, start: int) -> Iterator[Recorder]:
    """A recorder for the steps after `start`; a file that is there goes on."""
    recorder = Recorder(path)
    if distributed.is_primary() and lines(path):
        run_dir.append(path, {"restart": start})
    jax.monitoring.register_event_time_span_listener(recorder.heard)
    try:
        yield recorder
    finally:
        jax.monitoring.unregister_event_time_span_listener(recorder.heard)


def totals(path: Path) -> dict[str, float]:
    """Seconds by kind over all of a run; steps done again after a restart are lost."""
    kept: list[dict] = []
    sums: collections.Counter = collections.Counter()
    for line in lines(path):
        if "restart" in line:
            again = [old for old in kept if old["step"] > line["restart"]]
            kept = [old for old in kept if old["step"] <= line["restart"]]
            for old in again:
                sums["lost"] += sum(old["seconds"].values())
        else:
            kept.append(line)
    for line in kept:
        sums.update(line["seconds"])
    return {kind: sums[kind] for kind in KINDS}


def summary(path: Path) -> str:
    """One line: goodput, and every kind in seconds."""
    sums = totals(path)
    share = sums["step"] / (sum(sums.values()) or 1.0)
    parts = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in sums.items())
    return f"goodput {share:.0%}: {parts}"
