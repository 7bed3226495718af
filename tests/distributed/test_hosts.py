"""What hosts tell each other: a stop, data that differ, a host that is gone; its model."""

import dataclasses
import json

import jax
import pytest

import alanything_jax
from alanything_jax import hub
from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.pipelines import codec
from alanything_jax.sharding import distributed
from alanything_jax.training import prepare
from tests.distributed.jobs import RECIPE, Job, assert_same, read
from tests.distributed.test_jobs import QUIET, recipe

ASK = """
import os, signal, time
from alanything_jax.sharding import distributed
distributed.distributed_init()
distributed.wait()
if not distributed.is_primary():
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
with distributed.preemption() as due:
    first = due()
with distributed.preemption() as due:
    then = [due() for _ in range(3)]
print("asked", first, then)
try:
    distributed.halt("halted")
except distributed.Preempted:
    with distributed.preemption() as due:
        print("and then", due())
"""


def test_a_stop_before_the_first_step_is_not_lost(tmp_path):
    """It comes while a model loads, or between the stages of `llf`; a run goes on from
    step 500, and the stage after it from step 1."""
    codes, said = Job(tmp_path, devices=1, program=["-c", ASK]).end(60)
    assert codes == [0, 0], said
    for text in said:
        assert "asked True [True, True, True]" in text, said
        assert "and then False" in text, said


def test_two_processes_train_what_a_directory_holds(tmp_path):
    """Read by shards, but for the vocabulary, which grows by the codecs' codes."""
    bundle = load_model(ModelSource("tiny:llama"))
    place = hub.save(bundle, tmp_path / "model")
    source = {"path": str(place), "codecs": ("playground",)}
    small = recipe()
    small = dataclasses.replace(
        small,
        model=dataclasses.replace(small.model, **source),
        train=dataclasses.replace(small.train, steps=2),
    )
    alanything_jax.train(small, tmp_path / "alone", **QUIET)
    arguments = ["--model.path", str(place), "--model.codecs", "playground"]
    arguments += ["--train.steps", "2"]
    codes, said = Job(tmp_path / "run", arguments=arguments).end()
    assert codes == [0, 0], said
    assert_same(read(tmp_path / "run"), read(tmp_path / "alone"))


def test_a_vocabulary_that_grows_is_kept_on_the_host():
    experiment = recipe()
    layout = prepare.meshes.make(("fsdp=4",))
    table = prepare.rules.preset("fsdp")
    specs = prepare.describe(experiment.model).specs()
    words, kernel = (
        specs["embed"]["text"]["table"],
        specs["layers"]["attn"]["q"]["kernel"],
    )
    grows = dataclasses.replace(experiment.model, codecs=("playground",))
    assert prepare.place_read(grows, layout, table)(words) is None
    assert prepare.place_read(grows, layout, table)(kernel).mesh == layout
    assert prepare.place_read(experiment.model, layout, table)(words).mesh == layout
    assert prepare.place_read(grows, prepare.meshes.make(()), table) is None


def test_hosts_that_read_other_data_say_who(tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": c} for c in "cdefghijklmno"]
    each = []
    for n, some in enumerate((rows, rows[:-1])):
        place = tmp_path / f"{n}" / "rows.jsonl"
        place.parent.mkdir()
        place.write_text("".join(json.dumps(row) + "\n" for row in some))
        each.append(place)
    link = tmp_path / "rows.jsonl"
    link.symlink_to(each[0])
    program = f"""
import os, pathlib, sys
if os.environ["ALANYTHING_PROCESS_ID"] == "1":
    # Its disk holds another file at this path.
    from alanything_jax.data import sources
    rows = sources.rows
    sources.rows = lambda path, *cut: rows({str(each[1])!r}, *cut)
from alanything_jax.cli.main import main
sys.exit(main(["train", {str(RECIPE)!r}, "--run-dir", {str(tmp_path / "run")!r},
               "--data.path", {str(link)!r}]))
"""
    codes, said = Job(tmp_path / "run", program=["-c", program]).end(90)
    assert codes == [1, 1], said
    for text in said:
        assert "the data of host 2 (" in text and "Traceback" not in text, text


def test_orbax_does_not_ask_for_a_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "orbax.checkpoint._src.multihost.multihost.reached_preemption", asked.append
    )
    with checkpoints.manager(tmp_path, 1) as saved:
        checkpoints.save(saved, 500, {"a": jax.numpy.zeros(3)})
        checkpoints.wait(saved, 500)
    assert asked == []


@pytest.fixture
def second_of_two(monkeypatch):
    """As after `distributed_init`; asking JAX would start the backend."""
    world = distributed.World("tpu", 1, 2, "pod-0:8482")
    monkeypatch.setattr(distributed, "_joined", [world])
    monkeypatch.setattr(jax, "process_index", None)
    return world


def test_who_leaves_asks_no_backend(second_of_two):
    assert distributed.several() and not distributed.is_primary()


def test_a_peer_lost_in_a_checkpoint_is_no_full_disk(second_of_two):
    gone = jax.errors.JaxRuntimeError("ABORTED: Barrier failed: a task died")

    class Saved:
        directory = "there"

        def save_async(self, *_, **__):
            raise RuntimeError("commit failed") from gone

        wait = save_async

    for call in (
        lambda: checkpoints.save(Saved(), 3, {}),
        lambda: checkpoints.wait(Saved(), 3),
    ):
        with pytest.raises(RuntimeError, match="commit failed") as caught:
            call()
        assert distributed.lost_peer(caught.value)
    assert not distributed.lost_peer(RuntimeError("another thing"))


def test_what_is_for_one_host_or_one_disk_says_so(second_of_two, tmp_path):
    with pytest.raises(ValueError, match="trains on one host"):
        codec.train_codec(None, tmp_path)
    with pytest.raises(ValueError, match="gcsfuse"):
        alanything_jax.llf(None, "gs://bucket/run")
