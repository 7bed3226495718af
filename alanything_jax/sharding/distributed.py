"""Several processes as one job: JAX's multi-controller runtime, started in one place.

explicit   coordinator, number of processes and process id, as options or environment
tpu        TPU chips here and several hosts: JAX finds the others by itself
single     anything else: nothing is started
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PREEMPTED = 42  # The exit code that asks to be started again.
PORT = 8482  # JAX's own for TPUs; before 0.8.1 it was 8476.
OPTIONS = {
    "coordinator": str,
    "num_processes": int,
    "process_id": int,
    "coordinator_port": int,
    "init_timeout": int,
    "heartbeat_timeout": int,
}
# Where a container finds the hosts of its slice; a plain TPU VM has neither.
_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# What gloo and the coordination service say of a host that has ended.
_GONE = ("closed by peer", "reset by peer", "socket closed", "heartbeat", "task died")
_GONE += ("barrier timed out", "barrier failed", "tasks are unhealthy")
# A host may wait for another's judge or data: longer than any of these takes.
_PATIENCE = 7 * 24 * 3600


class Preempted(RuntimeError):
    """Asked to stop, and stopped at a saved step: the same command goes on from it."""


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those of its job; `slices` of TPUs are joined by a network."""

    mode: str = "single"
    process: int = 0
    processes: int = 1
    coordinator: str = ""
    slices: int = 1

    def __str__(self):
        return (
            f"host {self.process + 1} of {self.processes} ({socket.gethostname()}), "
            f"coordinator {self.coordinator}, mode {self.mode}"
            + (f", {self.slices} slices" if self.slices > 1 else "")
        )


# The world that `distributed_init` joined. Asking JAX instead would start the backend,
# which on TPUs waits for the other hosts: not for who leaves because of an error.
_joined: list[World] = []
# Counts how often all loops of this process asked for a stop, and holds one that came.
_asks = itertools.count(1)
_stopping = threading.Event()
_waits = itertools.count()


def arguments(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of `distributed_init` in a command line, and what else it holds."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, kind in OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind)
    known, rest = parser.parse_known_args(argv)
    return {n: v for n, v in vars(known).items() if v is not None}, rest


def distributed_init(say: Callable[[str], None] = print, **given: Any) -> World:
    """Join this process to its job; call it once, before anything touches a device.

    Args:
      say: gets a line that names this host, before it waits for the others.
      given: of OPTIONS; what is missing is read from ALANYTHING_<NAME>. coordinator:
        host:port of process 0. coordinator_port: in tpu mode, instead of 8482.
        init_timeout: seconds to wait for all hosts, by default 300, and 1800 in tpu mode.
        heartbeat_timeout: seconds after which a silent host counts as dead, 100.

    Raises:
      ValueError: settings that contradict or miss one another.
      ConnectionError: the coordinator, or another host, did not come in time.
    """
    asked = {name: _option(name, kind, given) for name, kind in OPTIONS.items()}
    world = _world(asked, os.environ)
    if world.mode == "single":
        return world
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("NPROC", "32")  # See `mesh.make`.
    timeout = asked["init_timeout"] or (1800 if world.mode == "tpu" else 300)
    say(f"{world}; waiting up to {timeout} s for all hosts")
    began = time.monotonic()
    _meet(world, timeout, say)
    place = (world.coordinator, world.processes, world.process)
    if world.mode == "tpu":
        os.environ["JAX_COORDINATOR_PORT"] = world.coordinator.rpartition(":")[2]
        place = ()
    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=max(1, int(timeout - time.monotonic() + began)),
            heartbeat_timeout_seconds=asked["heartbeat_timeout"] or 100,
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"{world}: not all hosts came together within {timeout} s. Was the same "
            f"command started on every host, each with its own process id? ({error})"
        ) from error
    _joined.append(world)
    usual = sys.excepthook

    def last_words(kind, error, trace):
        usual(kind, error, trace)
        again = isinstance(error, Preempted) or lost_peer(error)
        leave(PREEMPTED if again else 1)

    sys.excepthook = last_words
    return world


def _option(name, kind, given):
    """One setting: as given, or of the environment."""
    variable = f"ALANYTHING_{name.upper()}"
    value = given.get(name)
    value = os.environ.get(variable) if value is None else value
    try:
        return kind(value) if value not in (None, "") else None
    except ValueError as error:
        raise ValueError(f"{variable}={value!r}: give a whole number.") from error


def _world(asked: Mapping[str, Any], env: Mapping[str, str]) -> World:
    """Which mode, and which place in it. Raises ValueError."""
    triple = {n: asked[n] for n in ("coordinator", "num_processes", "process_id")}
    if any(value is not None for value in triple.values()):
        return _explicit(*triple.values(), env)
    hosts = _tpu_hosts(env)
    if hosts and not any(env.get(name) for name in _HOSTS):
        env = _told_slices() | dict(env)
    slices, own = _slices(env) if hosts else (1, 0)
    if len(hosts) * slices <= 1:
        return World()
    place = env.get("TPU_WORKER_ID") or _metadata("agent-worker-number")
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    return World(
        "tpu",
        int(place) + own * len(hosts),
        len(hosts) * slices,
        f"{first}:{asked['coordinator_port'] or PORT}",
        slices,
    )


def _explicit(coordinator, processes, process, env):
    if None in (coordinator, processes, process):
        raise ValueError(
            f"coordinator {coordinator}, num_processes {processes}, process_id {process}: "
            "give all three, as --coordinator HOST:PORT --num-processes N --process-id I "
            "or ALANYTHING_COORDINATOR, ALANYTHING_NUM_PROCESSES, ALANYTHING_PROCESS_ID."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {coordinator!r}: write HOST:PORT.")
    if not 0 <= process < processes:
        raise ValueError(
            f"process id {process} of {processes}: give 0 .. {processes - 1}."
        )
    slices, own = _slices(env)
    if processes % slices or process * slices // processes != own:
        raise ValueError(
            f"process {process} of {processes} cannot lie in slice {own} of {slices} "
            "(MEGASCALE_SLICE_ID, MEGASCALE_NUM_SLICES): give the processes of a slice "
            "consecutive ids, as many in each; or unset stale variables."
        )
    mode = "explicit" if processes > 1 else "single"
    return World(mode, process, processes, coordinator, slices)


def _slices(env):
    """Number of slices and this one's id, from MEGASCALE_*; (1, 0) without them.

    A pod that replaces another may carry the other's values, and then waits forever.
    """
    names = ("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS")
    found = {f"MEGASCALE_{name}": env.get(f"MEGASCALE_{name}") for name in names}
    if not any(found.values()):
        return 1, 0
    count, own, coordinator = (value or "" for value in found.values())
    expected = env.get("ALANYTHING_NUM_SLICES", count)
    fits = count.isdigit() and own.isdigit() and int(own) < int(count)
    if fits and (coordinator or count == "1") and expected == count:
        return int(count), int(own)
    raise ValueError(
        f"{found} with ALANYTHING_NUM_SLICES={expected}: they are set together, with "
        "0 <= SLICE_ID < NUM_SLICES, as many slices as the job was launched for. Stale "
        "values of another job make it wait forever: unset them, or delete the pod."
    )


def _told_slices():
    """MEGASCALE_* of a plain TPU VM, which has them in its metadata, as JAX reads them."""
    lines = (line.partition(":") for line in _metadata("tpu-env").splitlines())
    found = {name.strip(): value.strip().strip("'") for name, _, value in lines}
    return {n: value for n, value in found.items() if n.startswith("MEGASCALE_")}


def _tpu_hosts(env):
    """Hosts of this slice; [] where there are no TPU chips or nobody tells."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not chips or env.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return []
    names = next(filter(None, map(env.get, _HOSTS)), None)
    names = names or _metadata("worker-network-endpoints")
    # Older metadata say name:id:address.
    parts = [name.split(":") for name in names.split(",") if name]
    return [part[2] if len(part) == 3 else part[0] for part in parts]


def _metadata(key):
    """An attribute of this Google Cloud VM; "" elsewhere."""
    place = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
    request = urllib.request.Request(place + key, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return ""


def _meet(world, timeout, say):
    """Wait until the coordinator listens; on process 0, see that it can."""
    host, _, port = world.coordinator.rpartition(":")
    if world.process == 0:
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("", int(port)))
            except OSError as error:
                raise ConnectionError(
                    f"port {port} of this host is taken ({error}): does another job "
                    "still run here? End it, or give another port to all hosts."
                ) from error
        return
    began, warned = time.monotonic(), False
    while True:
        try:
            return socket.create_connection((host, int(port)), 5).close()
        except OSError as error:
            waited = time.monotonic() - began
            problem = (
                f"{world}: the coordinator cannot be reached ({error}). Has process 0 "
                f"been started there? Does the firewall let port {port} in? (Rules made "
                f"for v6e queued resources leave out JAX's port {PORT}: add one, or give "
                "--coordinator-port 8476 on every host.)"
            )
        if waited > timeout:
            raise ConnectionError(problem)
        if waited > 20 and not warned:
            say(f"still waiting. {problem}")
            warned = True
        time.sleep(0.2)


def several() -> bool:
    """Whether this job has more than one process."""
    if _joined:
        return _joined[-1].processes > 1
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process writes the files and speaks: process 0."""
    return _number() == 0


def is_mine(number: int) -> bool:
    """Whether a numbered piece of work is this process's; each takes every n-th."""
    return not several() or number % jax.process_count() == _number()


def _number():
    if _joined:
        return _joined[-1].process
    return jax.process_index() if jax.distributed.is_initialized() else 0


def wait() -> None:
    """Go on when every process has come here.

    By the coordination service: devices that wait in a program for so long as a judge
    may take are thought to hang.
    """
    if several():
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(
            f"alanything_jax/{next(_waits)}",
            timeout=_PATIENCE,
            processes=set(range(jax.process_count())),
        )


def gather(value: Any) -> list[Any]:
    """Every process's JSON-able value, in the order of processes; all must call it."""
    if not several():
        return [value]
    wait()
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.pad(data, (0, sizes.max() - data.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes)]


def agree(what: str, value: Any, advice: str) -> None:
    """Raise ValueError on every process if they hold different values; names the hosts."""
    everyone = gather([socket.gethostname(), value])
    other = [n for n, (_, theirs) in enumerate(everyone) if theirs != everyone[0][1]]
    if other:
        names = ", ".join(f"host {n + 1} ({everyone[n][0]})" for n in other)
        raise ValueError(
            f"{what} of {names} differ from those of host 1 ({everyone[0][0]}): {advice}"
        )


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """`due()`: whether to save now and `halt`, since a SIGTERM came.

    Every host calls it equally often, in all loops of a process taken together; it turns
    true at the same call on all of them, and stays so until `halt`.
    """

    def together():
        # JAX took SIGTERM when it started, and passes it on to all hosts. It wants a
        # number that grows by one from one loop, and run, to the next.
        if multihost_utils.reached_preemption_sync_point(next(_asks)):
            _stopping.set()
        return _stopping.is_set()

    if jax.distributed.is_initialized():
        yield together
    elif threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python gives signals to the main thread only.
    else:
        before = signal.signal(signal.SIGTERM, lambda *_: _stopping.set())
        try:
            yield _stopping.is_set
        finally:
            signal.signal(signal.SIGTERM, before)


def halt(news: str) -> None:
    """Stop because `due` said so. Raises Preempted."""
    _stopping.clear()
    raise Preempted(news)


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that another host is gone."""
    if error is None or not several():
        return False
    known = isinstance(error, jax.errors.JaxRuntimeError)
    if known and any(word in str(error).lower() for word in _GONE):
        return True
    return lost_peer(error.__cause__)


def leave(code: int) -> None:
    """End one of several processes at once; JAX's own way waits for all of them."""
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        # The others die with the coordinator in here: first they say why they end.
        time.sleep(2)
    os._exit(code)
