"""A run directory: resolved config, metrics, timing, checkpoints, quarantine, export."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alanything_jax import experiment as recipes
from alanything_jax.data.files import write_aside, write_json

# Fields that may differ when a run is resumed: they change no number of it.
_FREE = ("train.profile_steps", "train.tensorboard", "train.wandb", "train.keep")


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe as JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One object a step; nothing in it depends on the clock."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Seconds, tokens per second, memory: what differs between equal runs."""
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Orbax's directory."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The exported model."""
        return self.path / "export"


def open_run(
    path: str | Path,
    experiment: Any,
    free: tuple[str, ...] = _FREE,
    name: str = "config.json",
) -> RunDir:
    """Make the run directory, or check that an existing one is of the same recipe.

    Args:
      experiment: any recipe. free: its fields that may differ. name: of its picture.

    Raises ValueError: it belongs to another config; the fields that differ are listed.
    """
    run = RunDir(Path(path))
    run.path.mkdir(parents=True, exist_ok=True)
    ours, place = json.loads(json.dumps(recipes.to_json(experiment))), run.path / name
    if place.exists():
        theirs = json.loads(place.read_text())
        lines = recipes.differences(ours, theirs)
        changed = [line for line in lines if not line.startswith(free)]
        if changed:
            raise ValueError(
                f"{run.path} belongs to another config; these fields differ "
                f"(there -> here): {'; '.join(changed)}. Give another --run-dir, use the "
                f"same fields to resume, or remove {run.path} to start over."
            )
    write_json(place, ours)
    return run


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of a jsonl file that lie after `step`, half-written ones too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] > step:
            break
        kept.append(line + "\n")
    write_aside(path, "".join(kept))


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line and hand it to the disk."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def check_finite(numbers: Mapping[str, float], step: int, advice: str) -> None:
    """Stop on a loss or gradient that is not finite. Raises FloatingPointError."""
    bad = {
        n: numbers[n] for n in ("loss", "grad_norm") if not math.isfinite(numbers[n])
    }
    if bad:
        raise FloatingPointError(
            f"step {step}: {bad} is not finite. {advice}; the last checkpoint is from "
            "before this step."
        )
