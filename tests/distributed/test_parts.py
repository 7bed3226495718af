"""Rows of one host, goodput, and a run directory in a bucket."""

import dataclasses
import json
import shutil
import time
import types

import jax
import numpy as np
import pytest
from etils import epath

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.data import packing, pipeline
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import pjit, rules
from alanything_jax.training import goodput, restore, run_dir
from tests import toys
from tests.distributed.jobs import RECIPE, read
from tests.distributed.test_jobs import QUIET, recipe


def source(**changes):
    rng = np.random.default_rng(0)
    groups = toys.groups(rng, 12, responses=3, gaps=True)
    logps = [
        [rng.normal(size=len(b.tokens)).astype(np.float32) for b in g.branches]
        for g in groups
    ]
    layout = packing.Layout(4, 24, 6, 3, ("margin",))
    numbers = {"reference_logps": logps}
    return pipeline.StepSource(
        groups, layout, 6, couples=False, token_numbers=numbers, **changes
    )


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0, 2], [1], [3]]])
def test_hosts_fill_their_own_rows_of_the_same_microbatch(parts):
    """Also where a group's branches lie in rows of different hosts."""
    whole = source()
    for step in range(2):
        one = whole[step]
        for own in parts:
            mine = source(rows=own)[step]
            assert (mine.ids, mine.places, mine.tokens, mine.fill) == (
                one.ids, one.places, one.tokens, one.fill,
            )  # fmt: skip
            for part, batch in zip(mine.microbatches, one.microbatches, strict=True):
                for name, value in vars(batch).items():
                    if name not in ("table", "numbers", "media"):
                        np.testing.assert_array_equal(getattr(part, name), value[own])
                np.testing.assert_array_equal(part.table, batch.table)
                assert part.numbers.keys() == batch.numbers.keys()
                numbers = dict(batch.numbers)
                rows = numbers.pop("reference_logps")[own]
                np.testing.assert_array_equal(part.numbers["reference_logps"], rows)
                np.testing.assert_array_equal(part.numbers["margin"], numbers["margin"])


def test_own_rows_are_those_of_the_devices():
    mesh = meshes.make(("replica=2", "fsdp=2", "tensor=2"))
    table = rules.preset("fsdp_tensor")
    np.testing.assert_array_equal(pjit.own_rows(mesh, table, 8), np.arange(8))
    batch = source()[0].microbatches[0]
    placed = pjit.place_batch(batch, mesh, table)
    np.testing.assert_array_equal(pjit.fetch(placed.tokens), batch.tokens)


def test_goodput_counts_steps_done_again_as_lost(tmp_path):
    path = tmp_path / "goodput.jsonl"
    with goodput.record(path, 0) as record:
        record.spent.update({"init": 2.0, "step": 1.0})
        record.line(1)
        for step in (2, 3):
            record.spent.update({"step": 1.0, "data wait": 0.5})
            record.line(step)
    with path.open("a") as file:
        file.write('{"step": 4, "sec')  # killed
    with goodput.record(path, 1) as record:
        record.spent.update({"init": 1.0, "step": 1.0})
        record.line(2)
    sums = goodput.totals(path)
    assert sums["step"] == 2 and sums["init"] == 3 and sums["lost"] == 3
    assert goodput.summary(path).startswith("goodput 25%: step 2.0 s, init 3.0 s")


def test_goodput_knows_compiling_from_running(tmp_path):
    path = tmp_path / "goodput.jsonl"
    with goodput.record(path, 0) as record:
        with record.span("step"):
            time.sleep(0.05)
            jax.jit(lambda x: jax.numpy.sin(x) * time.monotonic())(1.0)
        spent = dict(record.spent)
        with record.span("step"):
            time.sleep(0.05)
        assert record.spent["compile"] == spent["compile"] > 0
        record.heard("/jax/core/compile/inner", 10.0, 11.0)
        record.heard("/jax/core/compile/outer", 9.0, 12.0)
        record.heard("/jax/core/compile/next", 12.0, 13.0)
        assert sum(end - start for start, end in record.compiled) == 4
    assert spent["step"] >= 0.05 and not path.exists()


def test_a_run_writes_its_goodput(tmp_path):
    said = []
    small = recipe(mesh=())
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, steps=2))
    run = alanything_jax.train(small, tmp_path / "run", say=said.append)
    assert said[-1].startswith("goodput ")
    sums = goodput.totals(run.goodput)
    for kind in ("step", "init", "compile", "data wait", "checkpoint", "evaluation"):
        assert sums[kind] > 0, kind
    assert not any(
        kind in line for line in read(run.path) for kind in goodput.KINDS[1:]
    )


def test_a_bucket_without_gcsfs_says_what_to_install(tmp_path):
    if run_dir.importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is here")
    with pytest.raises(ImportError, match="pip install gcsfs"):
        alanything_jax.train(recipe(mesh=()), "gs://bucket/run", **QUIET)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that stands for the bucket of this name."""

    def local(place):
        return epath.Path(place.replace("gs://", f"{tmp_path}/"))

    monkeypatch.setattr(run_dir, "epath", types.SimpleNamespace(Path=local))
    monkeypatch.setattr(run_dir.importlib.util, "find_spec", lambda name: name)
    return tmp_path / "bucket"


def test_a_run_in_a_bucket_resumes_from_it_alone(bucket, tmp_path):
    """A folder stands for the bucket; between the runs this host loses its disk."""
    small = recipe(mesh=())

    def train(steps, path):
        new = dataclasses.replace(small.train, steps=steps, checkpoint_every=2)
        cosine = dataclasses.replace(small.optimizer, schedule="constant")
        changed = dataclasses.replace(small, train=new, optimizer=cosine)
        return alanything_jax.train(changed, path, **QUIET)

    run = train(2, "gs://bucket/run")
    assert str(run) == "gs://bucket/run"
    there = bucket / "run"
    shutil.rmtree(run.path)
    config = json.loads((there / "config.json").read_text())
    config["train"]["steps"] = 4
    (there / "config.json").write_text(json.dumps(config))
    train(4, "gs://bucket/run")
    train(4, tmp_path / "local")
    assert read(there)[-1] == read(tmp_path / "local")[-1]
    assert [line["step"] for line in read(there)] == [0, 1, 2, 3, 4]
    # Who looks at a run takes nothing from the training that may be under way here.
    run.metrics.write_text("being written")
    assert restore.load_run("gs://bucket/run").step == 4
    assert run.metrics.read_text() == "being written"


def test_what_a_run_in_a_bucket_took_time_for_is_kept(bucket, tmp_path, monkeypatch):
    """The reference's log-probs before the first checkpoint; the time of lost steps."""
    small = recipe(mesh=())
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, steps=2))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("alanything_jax.training.loop.compiled.run_step", killed)
        with pytest.raises(KeyboardInterrupt):
            alanything_jax.train(small, "gs://bucket/run", **QUIET)
    run = run_dir.locate("gs://bucket/run")
    assert (
        sorted(path.suffix for path in (run.path / "reference").iterdir())
        == [".npz"] * 2
    )
    shutil.rmtree(run.path)
    said = []
    alanything_jax.train(small, "gs://bucket/run", say=said.append)
    assert not [line for line in said if "reference log-probs" in line]
    pushed = (bucket / "run/goodput.jsonl").read_text()
    run.goodput.write_text(pushed + '{"step": 3, "seconds": {"step": 9.0}}\n')
    assert run_dir.locate("gs://bucket/run").goodput.read_text().startswith(pushed)
    assert '"step": 9.0' in run.goodput.read_text()
    run.goodput.write_text("of another run\n")
    assert run_dir.locate("gs://bucket/run").goodput.read_text() == pushed


@pytest.mark.slow
def test_rollouts_of_a_run_in_a_bucket_come_back_from_it(bucket):
    """Step 3 is of a rollout that step 2's checkpoint lies in the middle of."""
    small = recipes.load(RECIPE.with_name("online_recipe.py"))
    compute = dataclasses.replace(small.compute, mesh=(), rows_per_microbatch=2)
    rollout = dataclasses.replace(small.rollout, passes=4)
    small = dataclasses.replace(small, compute=compute, rollout=rollout)
    run = alanything_jax.train(small, "gs://bucket/run", **QUIET)
    there = bucket / "run"
    whole, rolled = read(there), (there / "rollouts/000000.npz").read_bytes()
    for step in (3, 4):
        shutil.rmtree(there / f"checkpoints/{step}")
    shutil.rmtree(run.path)
    (there / "rollouts/000001.npz").write_bytes(b"of a policy that is no more")
    alanything_jax.train(small, "gs://bucket/run", **QUIET)
    assert read(there) == whole
    assert (there / "rollouts/000000.npz").read_bytes() == rolled
    assert not (there / "rollouts/000001.npz").exists()
