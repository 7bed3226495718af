"""A run directory: resolved config, metrics, timing, checkpoints, quarantine, export."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from alanything_jax import experiment as recipes
from alanything_jax.data import fetch
from alanything_jax.data.files import write_aside, write_json
from alanything_jax.sharding import distributed

# Fields that may differ when a run is resumed: they change no number of it, or, those
# of `compute`, only its rounding.
_FREE = ("train.profile_steps", "train.tensorboard", "train.wandb", "train.keep")
_FREE += (
    "data.workers",
    "compute.mesh",
    "compute.rules",
    "compute.rows_per_microbatch",
)


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Paths of one run.

    Attributes:
      bucket: "gs://...", where checkpoints are; `path` then is a local copy of the small
        files, pulled when it is opened and pushed before each checkpoint.
    """

    path: Path
    bucket: str = ""

    def __str__(self):
        return self.bucket or str(self.path)

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
    def goodput(self) -> Path:
        """Where the time went; see `training.goodput`."""
        return self.path / "goodput.jsonl"

    @property
    def samples(self) -> Path:
        """Of each rollout an answer to read."""
        return self.path / "samples.jsonl"

    @property
    def rollouts(self) -> Path:
        """One file a rollout; see `training.rollout`."""
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        """Orbax's directory."""
        return (epath.Path(self.bucket) if self.bucket else self.path) / "checkpoints"

    @property
    def export(self) -> Path:
        """The exported model."""
        return self.path / "export"


def locate(path: str | Path, to_read: bool = False) -> RunDir:
    """The run at a path, or in a bucket, whose small files are fetched.

    `to_read`: into a folder of their own; a training that runs here keeps its files.

    Raises ImportError: a bucket, without what reads it.
    """
    if not str(path).startswith("gs:/"):
        return RunDir(Path(path))
    if importlib.util.find_spec("gcsfs") is None:
        raise ImportError(
            f"run directory {path}: buckets are read through gcsfs. pip install gcsfs, or "
            "mount the bucket with gcsfuse and give the mounted path."
        )
    name = str(path).removeprefix("gs:").strip("/")  # A Path has folded the slashes.
    place = fetch.cache_dir() / "runs" / name
    place = Path(tempfile.mkdtemp()) if to_read else place
    run = RunDir(place, f"gs://{name}")
    if distributed.is_primary():
        # Steps after the last push are lost; the time that they took is not forgotten.
        spent = run.goodput.read_text() if run.goodput.exists() else ""
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.mkdir(parents=True)
        pull(run, "*.json*")
        if not to_read:
            pull(run, "reference/*.npz")
        if run.goodput.exists() and spent.startswith(run.goodput.read_text()):
            run.goodput.write_text(spent)
    return run


def pull(run: RunDir, pattern: str) -> None:
    """Fetch the files of a run in a bucket that match, such as `rollouts/*.npz`."""
    if run.bucket and distributed.is_primary():
        for file in epath.Path(run.bucket).glob(pattern):
            place = run.path / Path(pattern).parent / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def remove(run: RunDir, file: Path) -> None:
    """Take a file out of a run, and out of its bucket."""
    file.unlink()
    if run.bucket:
        _in_bucket(run, file).unlink(missing_ok=True)


def push(run: RunDir) -> None:
    """Copy what grew among the small files to the run's bucket, if it is in one."""
    if not (run.bucket and distributed.is_primary()):
        return
    for file in filter(Path.is_file, run.path.rglob("*")):
        there = _in_bucket(run, file)
        if not there.exists() or there.stat().length != file.stat().st_size:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(file.read_bytes())


def _in_bucket(run, file):
    return epath.Path(run.bucket) / file.relative_to(run.path).as_posix()


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
    Or the hosts of this job differ in recipe or code, or do not see the same directory.
    """
    run = locate(path)
    ours, place = json.loads(json.dumps(recipes.to_json(experiment))), run.path / name
    _agree(ours)
    run.path.mkdir(parents=True, exist_ok=True)
    changed = []
    if place.exists() and distributed.is_primary():
        theirs = json.loads(place.read_text())
        lines = recipes.differences(ours, theirs)
        changed = [line for line in lines if not line.startswith(free)]
    if changed := distributed.gather(changed)[0]:
        raise ValueError(
            f"{run} belongs to another config; these fields differ "
            f"(there -> here): {'; '.join(changed)}. Give another --run-dir, use the "
            f"same fields to resume, or remove {run} to start over."
        )
    if distributed.is_primary():
        write_json(place, ours)
    distributed.wait()
    seen = distributed.gather(bool(run.bucket) or place.exists())
    if not all(seen):
        raise ValueError(
            f"host {seen.index(False) + 1} of {len(seen)} does not see {place}, which host "
            "1 wrote. Give a --run-dir on a disk that all hosts share."
        )
    return run


def _agree(recipe: Any) -> None:
    """Raise on every host if they differ in recipe or code; names hosts and what."""
    if not distributed.several():
        return
    root = Path(recipes.__file__).parent
    source = {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()[:8]
        for p in sorted(root.rglob("*.py"))
    }
    facts = {"recipe": recipe, "source": source, "jax": jax.__version__}
    names, everyone = zip(
        *distributed.gather([socket.gethostname(), facts]), strict=True
    )
    lines = [
        f"host {n + 1} ({names[n]}) {line}"
        for n, theirs in enumerate(everyone)
        for line in recipes.differences(theirs, everyone[0])
    ]
    if lines:
        raise ValueError(
            f"the hosts of this job disagree; against host 1 ({names[0]}), as there -> "
            f"here: {'; '.join(lines[:12])}. Give every host the same command and code."
        )


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of a jsonl file that lie after `step`, half-written ones too.

    Here as in `append`, of several processes only process 0 writes.
    """
    if not (distributed.is_primary() and path.exists()):
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record.get("step", step) > step:
            break
        kept.append(line + "\n")
    write_aside(path, "".join(kept))


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line and hand it to the disk."""
    if not distributed.is_primary():
        return
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
