"""Several processes train as one, stop together, and go on on any number of hosts."""

import dataclasses
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.sharding import distributed
from alanything_jax.training import restore, run_dir
from tests.distributed.jobs import RECIPE, Job, assert_same, read

QUIET = {"say": lambda line: None}


def recipe(**compute):
    whole = recipes.load(RECIPE)
    return dataclasses.replace(
        whole, compute=dataclasses.replace(whole.compute, **compute)
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with four devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    alanything_jax.train(recipe(), run, **QUIET)
    return read(run)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes, one of which got a SIGTERM; its codes, and their words."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    job = Job(run)
    # Process 1 then compiles its first step: its cache is read by process 0 alone.
    job.signal_after(1, signal.SIGTERM, process=1)
    return run, *job.end()


def test_sigterm_to_one_stops_both_at_the_same_saved_step(stopped, alone):
    run, codes, said = stopped
    assert codes == [42, 42], said
    lines = read(run)
    step = lines[-1]["step"]
    assert 1 <= step < 12 and (run / "checkpoints" / str(step)).is_dir()
    for n, text in enumerate(said):
        assert f"host {n + 1} of 2" in text and "mode explicit" in text
        assert f"step {step} of 12 is saved" in text
    assert "reference log-probs" in said[0] and "reference log-probs" not in said[1]
    # The data of two hosts, each of which filled its own rows, are those of one.
    assert_same(lines, alone[: len(lines)])


def test_two_processes_go_on_to_the_numbers_of_one(stopped, alone, tmp_path):
    """Process 1 has lost its disk; the reference's log-probs come from process 0."""
    shutil.copytree(stopped[0], tmp_path / "run")
    shutil.copytree(stopped[0].parent / "cache0", tmp_path / "cache0")
    assert not (stopped[0].parent / "cache1" / "reference").exists()
    codes, said = Job(tmp_path / "run").end()
    assert codes == [0, 0], said
    assert "resuming" in said[0] and "goodput" in said[0]
    assert "reference log-probs" not in said[0]
    assert "goodput" not in said[1] and "wrote" not in said[1]
    assert_same(read(tmp_path / "run"), alone)


LOAD = """
import sys, jax, numpy as np
from alanything_jax.sharding.distributed import distributed_init
distributed_init()
from alanything_jax.training.restore import load_run
run = load_run(sys.argv[1])
size = sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(run.bundle.params))
print("loaded", run.step, f"{size:.3f}")
"""


def test_two_processes_load_what_one_loads(stopped):
    one = restore.load_run(stopped[0])
    leaves = jax.tree.leaves(one.bundle.params)
    size = sum(np.abs(np.asarray(x)).sum() for x in leaves)
    codes, said = Job(stopped[0], program=["-c", LOAD, str(stopped[0])]).end()
    assert codes == [0, 0], said
    assert all(f"loaded {one.step} {size:.3f}" in text for text in said), said


def test_one_process_with_another_mesh_goes_on(stopped, alone, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    other = recipe(mesh=("replica=2", "fsdp=1"), rows_per_microbatch=2)
    alanything_jax.train(other, tmp_path / "run", **QUIET)
    # Of smaller microbatches there are more, fuller ones.
    found, expected = (
        [{k: line[k] for k in line.keys() - {"microbatches", "fill"}} for line in some]
        for some in (read(tmp_path / "run"), alone)
    )
    assert_same(found, expected)


def test_hosts_that_disagree_say_who_and_what(tmp_path):
    each = ((), ("--seed", "1"))
    codes, said = Job(tmp_path / "run", devices=1, each=each).end(60)
    assert codes == [1, 1], said
    for text in said:
        assert "host 2 (" in text and "recipe.seed: 0 -> 1" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_leaves_out_devices_is_refused(tmp_path):
    job = Job(tmp_path / "run", devices=1, arguments=("--compute.mesh", "fsdp=1"))
    codes, said = job.end(60)
    assert codes == [1, 1]
    assert all("--compute.mesh fsdp=-1" in text for text in said), said


def test_sigterm_to_a_run_of_one_process_saves_and_goes_on(tmp_path, monkeypatch):
    append, single = run_dir.append, recipe(mesh=())
    alanything_jax.train(single, tmp_path / "whole", **QUIET)

    def then_stop(path, record):
        append(path, record)
        if path.name == "metrics.jsonl" and record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(run_dir, "append", then_stop)
        with pytest.raises(distributed.Preempted, match="step 3 of 12 is saved"):
            alanything_jax.train(single, tmp_path / "run", **QUIET)
    assert signal.getsignal(signal.SIGTERM) == before
    alanything_jax.train(single, tmp_path / "run", **QUIET)
    files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The metrics file of two processes that are left alone."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert Job(run).end()[0] == [0, 0]
    return (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_after_a_sigterm_two_processes_go_on_bit_for_bit(stopped, unbroken, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    assert Job(tmp_path / "run").end()[0] == [0, 0]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_kill_9_of_one_ends_the_other_and_the_restart_goes_on(
    process, unbroken, tmp_path
):
    run = tmp_path / "run"
    job = Job(run, arguments=("--heartbeat-timeout", "10"))
    job.signal_after(4, signal.SIGKILL, process)
    codes, said = job.end(60)
    assert codes[process] == -signal.SIGKILL
    # Without its coordinator, JAX itself may be quicker to end a process.
    assert codes[1 - process] in (42, -signal.SIGABRT), said
    words = ("another host is gone", "another task died")
    assert any(word in said[1 - process] for word in words)
    assert Job(run).end()[0] == [0, 0]
    assert (run / "metrics.jsonl").read_bytes() == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp=4", "replica=2 fsdp=2"])
def test_four_processes_equal_one(mesh, alone, tmp_path):
    arguments = ("--compute.mesh", *mesh.split())
    codes, said = Job(tmp_path / "run", 4, 1, arguments).end()
    assert codes == [0] * 4, said
    assert_same(read(tmp_path / "run"), alone)


@pytest.mark.slow
def test_a_tensor_axis_across_processes(alone, tmp_path):
    """Each of two hosts then needs all rows of its half of the model."""
    arguments = (
        "--compute.mesh",
        "fsdp=2",
        "tensor=2",
        "--compute.rules",
        "fsdp_tensor",
    )
    codes, said = Job(tmp_path / "run", 4, 1, arguments).end()
    assert codes == [0] * 4, said
    assert_same(read(tmp_path / "run"), alone)
