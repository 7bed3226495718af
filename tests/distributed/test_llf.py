"""Learning from language feedback as one job of two processes."""

import json
import types
from pathlib import Path

import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.data import store
from alanything_jax.pipelines import llf_stages as stages
from alanything_jax.schema import Example
from alanything_jax.sharding import distributed
from tests.distributed.jobs import Job, read

RECIPE = Path(__file__).with_name("llf_recipe.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    alanything_jax.llf(recipes.load(RECIPE), run, say=lambda line: None)
    return run


def pairs(run):
    return [store.to_json(example) for example in store.read(run / "round-0" / "pairs")]


def test_each_process_does_every_nth_shard_and_reads_them_all(tmp_path, monkeypatch):
    rows = [stages.Row(Example(str(n), ())) for n in range(7)]
    done = {0: [], 1: []}

    def process(number, then):
        monkeypatch.setattr(distributed, "is_mine", lambda n: n % 2 == number)
        monkeypatch.setattr(distributed, "wait", then)

        def stage(some, seed):
            done[number] += [row.example.id for row in some]
            return list(some)

        run = stages.Runner(tmp_path, (0, 0), 2, [], lambda line: None)
        return run("stage", rows, stage, types.SimpleNamespace(weights="w"))

    # Process 0 waits until process 1 has done its share.
    kept = process(0, then=lambda: process(1, then=lambda: None))
    assert done == {0: ["0", "1", "4", "5"], 1: ["2", "3", "6"]}
    assert [row.example.id for row in kept] == list("0123456")


@pytest.mark.slow
def test_two_processes_share_the_shards_and_make_the_same_pairs(alone, tmp_path):
    run = tmp_path / "run"
    program = [
        "-m",
        "alanything_jax.cli.main",
        "llf",
        str(RECIPE),
        "--run-dir",
        str(run),
    ]
    codes, said = Job(run, devices=1, program=program).end()
    assert codes == [0, 0], said
    assert pairs(run) == pairs(alone) and len(pairs(run)) > 3
    theirs, ours = (json.loads((r / "yield.json").read_text()) for r in (run, alone))
    assert theirs == ours
    assert "sample" in said[0] and "kept" not in said[1]
    align = Path("round-0") / "align"
    steps = [line["step"] for line in read(run / align)]
    assert steps == [line["step"] for line in read(alone / align)]
    assert (run / align / "export" / "model.safetensors").is_file()
