"""The built data set: equal bytes from any number of workers, stopped or not, or Beam."""

import json
import subprocess
import sys

import pytest

from alanything_jax.cli.main import main
from alanything_jax.data import store
from alanything_jax.playground import build as building
from alanything_jax.playground import oracle
from alanything_jax.playground.build import Recipe, build, make_shard

RECIPE = Recipe(20, seed=3, error=0.25, records_per_shard=8)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out, told = tmp_path_factory.mktemp("built") / "data", []
    assert build(RECIPE, out, on_records=told.append) == 0
    assert told == [0, 8, 16, 20]
    return out


def test_three_shards_of_sound_records(built):
    examples = list(store.read(built))
    assert [e.id for e in examples] == [f"train-3-{n}" for n in range(20)]
    assert len([name for name in files(built) if "array_record" in name]) == 3
    assert json.loads((built / "recipe.json").read_text())["error"] == 0.25
    assert [p.name for p in built.parent.iterdir()] == ["data"]
    kinds = set()
    for example in examples:
        scores = [oracle.score(example, r).overall for r in example.responses]
        assert scores[0] != scores[1] and example.feedback.chosen in (0, 1)
        overall = [c for c in example.feedback.critiques if c.dimension is None]
        for n, critique in enumerate(overall):
            verdict = oracle.score(example, example.responses[n])
            assert critique.text == oracle.critique(verdict)
            assert oracle.score(example, critique.refinement).good
        assert len(example.feedback.ratings) == 8
        for message in (*example.prompt, *example.responses[0].messages):
            for part in message.parts:
                assert part.kind == "text" or isinstance(part.data, bytes)
                kinds.add(part.kind)
    assert kinds == {"text", "image", "audio", "video"}


def test_shards_differ(built):
    goals = [json.dumps(e.extra["goal"]) for e in store.read(built)]
    assert not set(goals[:8]) & set(goals[8:16])


def test_worker_processes_change_nothing(built, tmp_path):
    told = []
    build(RECIPE, tmp_path / "d", workers=2, on_records=told.append)
    assert files(tmp_path / "d") == files(built)
    assert told[0] == 0 and told[-1] == 20 and len(told) == 4


def test_beam_changes_nothing(built, tmp_path):
    pytest.importorskip("apache_beam")
    build(RECIPE, tmp_path / "d", beam=True)
    assert files(tmp_path / "d") == files(built)


def test_without_beam_there_is_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    out = str(tmp_path / "d")
    argv = ["data", "build", "playground", "--pairs", "4", "--out", out, "--beam"]
    assert main(argv) == 1
    assert "pip install 'alanything_jax[beam]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_build_that_was_stopped_goes_on(built, tmp_path, monkeypatch):
    made = []

    def stops(recipe, folder, shard):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(make_shard(recipe, folder, shard))
        return shard

    monkeypatch.setattr(building, "make_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        build(RECIPE, tmp_path / "d")
    aside = tmp_path / "d.incomplete"
    assert not (tmp_path / "d").exists()
    # One of the two was cut off before its size was written: it does not count.
    (aside / "shard-00001.json").unlink()
    (aside / "shard-00001").write_bytes(b"half")
    (aside / "shard-00002.part").write_bytes(b"half")
    with pytest.raises(ValueError, match="unfinished build of .*'seed': 3.*'seed': 4"):
        build(Recipe(20, seed=4, error=0.25, records_per_shard=8), tmp_path / "d")
    monkeypatch.undo()
    assert build(RECIPE, tmp_path / "d") == 1
    assert files(tmp_path / "d") == files(built)
    with pytest.raises(ValueError, match="is not empty"):
        build(RECIPE, tmp_path / "d")


def test_a_failing_worker_is_heard(tmp_path, monkeypatch):
    def fails(recipe, folder, shard):
        raise RuntimeError("no room on the disk")

    monkeypatch.setattr(building, "make_shard", fails)
    with pytest.raises(RuntimeError, match="no room on the disk"):
        build(RECIPE, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_other_seeds_and_splits_give_other_data(built, tmp_path):
    for name, recipe in {
        "seed": Recipe(20, seed=4, error=0.25, records_per_shard=8),
        "split": Recipe(20, seed=3, error=0.25, split="test", records_per_shard=8),
    }.items():
        build(recipe, tmp_path / name)
        one, other = store.read(built)[0], store.read(tmp_path / name)[0]
        assert one.extra["goal"] != other.extra["goal"]


def test_tfds_reads_it_without_tensorflow(built):
    code = f"""
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(built)!r}).as_data_source("train")
print(len(source), source[19]["id"].decode())
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "20 train-3-19", done.stderr


def test_the_command_and_its_check(built, tmp_path, capsys):
    out = str(tmp_path / "d")
    argv = ["data", "build", "playground", "--pairs", "20", "--out", out]
    argv += ["--seed", "3", "--error", "0.25", "--records-per-shard", "8"]
    assert main([*argv, "--workers", "1"]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert f"wrote {out}: 20 pairs in 3 shards next: alanything data inspect" in shown
    assert files(tmp_path / "d") == files(built)
    assert main(["data", "check", out]) == 0
    shown = capsys.readouterr().out
    assert "sound" in shown and "with 2 responses" in shown
    assert main(["data", "inspect", out, "--count", "1"]) == 0
    assert main(argv) == 1
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["data"])
    assert stopped.value.code == 2
    assert "{convert, build, inspect, check}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        {"pairs": 0},
        {"pairs": 1, "seed": -1},
        {"pairs": 1, "records_per_shard": 0},
        {"pairs": 1, "error": 1.5},
        {"pairs": 1, "split": "dev"},
    ],
)
def test_impossible_recipes(fields):
    with pytest.raises(ValueError, match="must be"):
        Recipe(**fields)
