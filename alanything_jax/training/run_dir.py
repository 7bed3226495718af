"""A run directory: resolved config, metrics, timing, checkpoints, quarantine, export."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from alanything_jax import experiment as recipes

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


def open_run(path: str | Path, experiment: recipes.Experiment) -> RunDir:
    """Make the run directory, or check that an existing one is of the same recipe.

    Raises:
      ValueError: it belongs to another config; the fields that differ are listed.
    """
    run = RunDir(Path(path))
    run.path.mkdir(parents=True, exist_ok=True)
    ours = recipes.to_json(experiment)
    if run.config.exists():
        theirs = json.loads(run.config.read_text())
        changed = [
            line
            for line in recipes.differences(ours, theirs)
            if not line.startswith(_FREE)
        ]
        if changed:
            raise ValueError(
                f"{run.path} belongs to another config; these fields differ "
                f"(there -> here): {'; '.join(changed)}. Give another --run-dir, use the "
                f"same fields to resume, or remove {run.path} to start over."
            )
    write_json(run.config, ours)
    return run


def write_aside(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all."""
    write_aside(path, json.dumps(value, indent=1) + "\n")


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
