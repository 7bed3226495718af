"""How a process finds its place in a job, and what it says when it cannot."""

import argparse
import contextlib
import socket
import sys
import time

import jax
import pytest

from alanything_jax.cli import main
from alanything_jax.sharding import distributed

EXPLICIT = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "pod-0:8080",
}
TRIPLE = "COORDINATOR NUM_PROCESSES PROCESS_ID".split()


@pytest.fixture
def joined(monkeypatch):
    """No environment of a job; what `jax.distributed.initialize` was called with."""
    for name in (*distributed.OPTIONS, "num_slices"):
        monkeypatch.delenv(f"ALANYTHING_{name.upper()}", raising=False)
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    monkeypatch.setattr(distributed, "_joined", [])
    calls = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *args, **named: calls.append((args, named)),
    )
    return calls


@pytest.fixture
def tpu(monkeypatch):
    """A host that has TPU chips: the second of two."""
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(distributed, "_meet", lambda *args: None)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "pod-0,pod-1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    return monkeypatch


def init(**given):
    said = []
    world = distributed.distributed_init(said.append, **given)
    return world, " ".join(said)


def test_alone_nothing_is_started_or_said(joined):
    world, said = init()
    assert (world.mode, said, joined) == ("single", "", [])
    assert not distributed.several() and distributed.is_primary()
    assert distributed.gather({"a": 1}) == [{"a": 1}]


def test_explicit_by_environment(joined, monkeypatch):
    monkeypatch.setattr(distributed, "_meet", lambda *args: None)
    for name in TRIPLE:
        monkeypatch.setenv(f"ALANYTHING_{name}", str(EXPLICIT[name.lower()]))
    _, said = init(heartbeat_timeout=7, process_id=0)
    assert "host 1 of 4" in said and "10.0.0.1:1234, mode explicit" in said
    ((args, named),) = joined
    assert args == ("10.0.0.1:1234", 4, 0)
    assert named["heartbeat_timeout_seconds"] == 7
    assert 298 <= named["initialization_timeout"] <= 300


def test_tpu_hosts_find_each_other(joined, tpu):
    world, said = init(coordinator_port=8476)
    assert "host 2 of 2" in said and "pod-0:8476, mode tpu" in said
    ((args, named),) = joined
    assert args == () and 1798 <= named["initialization_timeout"] <= 1800
    assert distributed.os.environ["JAX_COORDINATOR_PORT"] == "8476"
    tpu.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert init()[0].mode == "single"


def test_hosts_of_a_plain_tpu_vm_come_from_the_metadata_server(joined, tpu):
    tpu.delenv("TPU_WORKER_HOSTNAMES")
    tpu.delenv("TPU_WORKER_ID")
    told = {"worker-network-endpoints": "a:1:10.0.0.7,b:2:10.0.0.8"}
    told |= {"agent-worker-number": "1"}
    tpu.setattr(distributed, "_metadata", lambda key: told.get(key, ""))
    world, _ = init()
    assert (world.process, world.processes) == (1, 2)
    assert world.coordinator == "10.0.0.7:8482"


def test_slices_of_a_tpu_job_are_counted(joined, tpu):
    for name, value in SLICES.items():
        tpu.setenv(name, value)
    world, said = init()
    assert (world.process, world.processes, world.slices) == (3, 4, 2)
    assert "host 4 of 4" in said and "coordinator pod-0:8482" in said
    assert "2 slices" in said


@pytest.mark.parametrize("hosts", ["a:1:10.0.1.7,b:2:10.0.1.8", "10.0.1.7"])
def test_slices_of_queued_resources_come_from_the_metadata_server(joined, tpu, hosts):
    """With one host a slice, several slices are several processes too."""
    tpu.delenv("TPU_WORKER_HOSTNAMES")
    tpu.delenv("TPU_WORKER_ID")
    lines = (
        "ACCELERATOR_TYPE: 'v6e-8'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.7:8081'\n"
    )
    lines += "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nZONE: 'z'\n"
    told = {"worker-network-endpoints": hosts, "agent-worker-number": "0"}
    tpu.setattr(distributed, "_metadata", (told | {"tpu-env": lines}).get)
    world, _ = init()
    each = hosts.count(",") + 1
    assert (world.process, world.processes) == (each, 2 * each)
    assert world.slices == 2 and world.coordinator == "10.0.0.7:8482"


@pytest.mark.parametrize(
    "change,problem",
    [
        ({"MEGASCALE_SLICE_ID": ""}, "'MEGASCALE_SLICE_ID': ''"),
        ({"MEGASCALE_SLICE_ID": "2"}, "'MEGASCALE_SLICE_ID': '2'"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": ""}, "set together"),
        ({"ALANYTHING_NUM_SLICES": "3"}, "ALANYTHING_NUM_SLICES=3"),
    ],
)
def test_stale_slices_are_refused(change, problem, joined, tpu):
    for name, value in (SLICES | change).items():
        tpu.setenv(name, value)
    with pytest.raises(ValueError, match=f"{problem}.*Stale values"):
        init()


def test_slices_must_fit_explicit_processes(joined, monkeypatch):
    for name, value in SLICES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="process 2 of 3 cannot lie in slice 1 of 2"):
        init(**EXPLICIT | {"num_processes": 3})
    with pytest.raises(ValueError, match="process 0 of 4 cannot lie in slice 1 of 2"):
        init(**EXPLICIT | {"process_id": 0})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_processes": None}, "num_processes None.*give all three.*ALANYTHING_NUM"),
        ({"coordinator": "10.0.0.1"}, "write HOST:PORT"),
        ({"process_id": 4}, "process id 4 of 4: give 0 .. 3"),
    ],
)
def test_settings_that_make_no_sense(change, message, joined):
    with pytest.raises(ValueError, match=message):
        init(**EXPLICIT | change)


def test_a_variable_that_is_no_number(joined, monkeypatch):
    monkeypatch.setenv("ALANYTHING_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="ALANYTHING_PROCESS_ID='first': give a whole"):
        init()


def test_a_coordinator_that_is_not_there(joined):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(
        ConnectionError, match=f"{place}.*cannot be reached.*8482.*8476"
    ):
        init(coordinator=place, num_processes=2, process_id=1, init_timeout=1)
    assert time.monotonic() - began < 10 and joined == []


def test_a_port_that_is_taken(joined):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="is taken.*another job"):
            init(coordinator=place, num_processes=2, process_id=0)


def test_a_host_that_never_comes(joined, monkeypatch):
    def late(*args, **named):
        raise RuntimeError("DEADLINE_EXCEEDED: task 1")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    monkeypatch.setattr(distributed, "_meet", lambda *args: None)
    with pytest.raises(
        ConnectionError, match="not all hosts came.*same command.*task 1"
    ):
        init(**EXPLICIT)


@pytest.mark.parametrize(
    "error,code", [(KeyError("a bug"), 1), (distributed.Preempted("saved"), 42)]
)
def test_what_nobody_catches_ends_this_host_at_once(error, code, joined, monkeypatch):
    codes = []
    monkeypatch.setattr(distributed, "_meet", lambda *args: None)
    monkeypatch.setattr(distributed, "leave", codes.append)
    init(**EXPLICIT)
    sys.excepthook(type(error), error, None)
    assert codes == [code]


@pytest.mark.parametrize("verb,joins", [("train", True), ("verify", False)])
def test_only_verbs_that_run_everywhere_wait_for_a_pod(
    verb, joins, joined, tpu, capsys
):
    def stop(*args, **named):
        raise ValueError("would wait")

    tpu.setattr(distributed, "_meet", stop)
    with contextlib.suppress(SystemExit):
        main.main([verb, "--help"])
    assert ("would wait" in capsys.readouterr().err) == joins


def test_options_are_taken_out_of_a_command_line():
    line = "train c.py --num-processes 4 --seed 1 --coordinator=h:1 --help".split()
    options, rest = distributed.arguments(line)
    assert options == {"num_processes": 4, "coordinator": "h:1"}
    assert rest == "train c.py --seed 1 --help".split()
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        distributed.arguments(["train", "--process-id", "x"])
