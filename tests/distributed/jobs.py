"""Jobs of several CPU processes on loopback, and their metrics."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("recipe.py")
LIMIT = 240


class Job:
    """`alanything train` on `count` processes that have `devices` devices each.

    Each has a cache of its own beside the run. `program`: what they run instead.
    """

    def __init__(self, run, count=2, devices=2, arguments=(), each=(), program=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={devices}"
        # What is compared here is equal programs; compiling them is most of the time.
        flags += " --xla_backend_optimization_level=0"
        command = ["-m", "alanything_jax.cli.main", "train", str(RECIPE)]
        command += ["--run-dir", str(run), *arguments]
        command = [sys.executable, *(program or command)]
        self.metrics = Path(run) / "metrics.jsonl"
        self.processes = [
            subprocess.Popen(
                [*command, *(each[n] if each else ())],
                env=os.environ
                | {
                    "XLA_FLAGS": flags,
                    "ALANYTHING_CACHE": str(Path(run).parent / f"cache{n}"),
                    "ALANYTHING_COORDINATOR": f"127.0.0.1:{port}",
                    "ALANYTHING_NUM_PROCESSES": str(count),
                    "ALANYTHING_PROCESS_ID": str(n),
                },
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for n in range(count)
        ]

    def signal_after(self, lines, number, process):
        """Send a signal to one process once the metrics file has so many lines."""
        until = time.monotonic() + LIMIT
        while not self.metrics.exists() or self.metrics.read_text().count("\n") < lines:
            ended = [p for p in self.processes if p.poll() is not None]
            assert not ended and time.monotonic() < until, self.end()
            time.sleep(0.02)
        self.processes[process].send_signal(number)

    def end(self, limit=LIMIT):
        """(exit codes, what each said); whoever still runs after `limit` is killed."""
        said, until = [], time.monotonic() + limit
        try:
            for process in self.processes:
                left = max(0.1, until - time.monotonic())
                said.append(process.communicate(timeout=left)[0])
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
        return [process.returncode for process in self.processes], said


def read(run):
    """The lines of a run's metrics."""
    return [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def assert_same(one, other, tolerance=1e-5, of_losses=0.0):
    """Equal steps and keys; losses equal relative to themselves, the rest to one.

    `of_losses`: 1 where losses are small sums of large terms, such as advantages.
    """
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys(), a.keys() ^ b.keys()
        for name in a:
            if a["step"] < 2 and name.endswith("reward_accuracy"):
                continue  # Policy and reference are equal: rounding decides.
            size = max(of_losses if "loss" in name else 1, abs(a[name]))
            assert abs(a[name] - b[name]) <= tolerance * size, (name, a, b)
