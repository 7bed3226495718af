"""Mixtures and streams: shares, epochs, and any place reached by arithmetic."""

import dataclasses
import itertools
import json
import pathlib

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax import experiment as recipes
from alanything_jax.cli import recipe as commands
from alanything_jax.data import (
    fetch,
    groups,
    mixture,
    packing,
    pipeline,
    sources,
    store,
    streaming,
)
from alanything_jax.data.byte_tokenizer import byte_tokenizer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "dpo_smollm2.py"
MIXED = st.lists(
    st.tuples(st.integers(1, 9), st.floats(0.05, 20)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(
    MIXED, st.integers(0, 99), st.integers(1, 7), st.integers(0, 50), st.integers(1, 9)
)
def test_any_stretch_is_reached_by_arithmetic(mix, seed, per_step, step, small):
    sizes, weights = zip(*mix, strict=True)
    some = mixture.members(seed, step, per_step, sizes, weights)
    assert len(some) == per_step
    walked = [
        place
        for n in range(-(-(step + 1) * per_step // small))
        for place in mixture.members(seed, n, small, sizes, weights)
    ]
    assert walked[step * per_step : (step + 1) * per_step] == some


@settings(max_examples=60, deadline=None)
@given(MIXED, st.integers(0, 99))
def test_shares_hold_and_epochs_are_permutations(mix, seed):
    sizes, weights = zip(*mix, strict=True)
    shown = mixture.members(seed, 0, 240, sizes, weights)
    for source, size in enumerate(sizes):
        places = [n for s, n in shown if s == source]
        share = weights[source] / sum(weights)
        for first, last in ((0, 240), (50, 60), (101, 140)):
            count = sum(s == source for s, _ in shown[first:last])
            # A source may shift by one place for each of the others.
            assert abs(count - share * (last - first)) < 2 + share * len(mix)
        for epoch in range(len(places) // size):
            assert sorted(places[epoch * size : (epoch + 1) * size]) == [*range(size)]


def test_one_source_keeps_the_order_of_no_mixture():
    for step in range(9):
        mixed = mixture.members(5, step, 4, [7], [3.0])
        assert mixed == [(0, n) for n in pipeline.members(5, step, 4, 7)]


def test_sources_of_one_size_have_orders_of_their_own():
    shown = mixture.members(0, 0, 80, (40, 40), (1, 1))
    one, two = ([n for s, n in shown if s == source] for source in (0, 1))
    assert one != two and mixture.members(1, 0, 80, (40, 40), (1, 1)) != shown


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2), (1, np.inf), (1, np.nan)])
def test_impossible_weights(weights):
    with pytest.raises(ValueError, match="give each one a positive number"):
        groups.Data(("a", "b"), weights=weights)
    with pytest.raises(ValueError, match="one is empty"):
        mixture.members(0, 0, 4, [3, 0], [1, 1])


def write(path, name, count):
    rows = [
        {"prompt": "a", "chosen": f"{name}{n}", "rejected": "c"} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def two_paths(tmp_path):
    return tuple(write(tmp_path / f"{n}.jsonl", n, 6 + 6 * (n == "y")) for n in "xy")


def steps_of(data, tmp_path, layout):
    train, _ = groups.load_groups(
        data, byte_tokenizer(), 2, tmp_path / "q.jsonl", lambda line: None
    )
    return pipeline.StepSource(train, layout, 4, seed=3, weights=data.weights)


def test_several_paths_of_a_recipe(tmp_path):
    paths, layout = two_paths(tmp_path), packing.Layout(2, 512, 4, 2)
    mixed = steps_of(groups.Data(paths, weights=(3, 1)), tmp_path, layout)
    assert [g.source for g in mixed.groups] == [0] * 6 + [1] * 12
    ids = [mixed[n].ids for n in range(12)]
    assert all(sum(i.startswith("y") for i in some) == 1 for some in ids)
    seen = [i for some in ids for i in some if i.startswith("y")]
    assert len(set(seen)) == 12
    jumped = next(pipeline.iterate(mixed, 9, 10))
    assert jumped.ids == ids[9]
    # Without weights: one order over all, as of one file.
    plain = steps_of(groups.Data(paths), tmp_path, layout)
    assert plain.members(2) == pipeline.members(3, 2, 4, 18)
    alone = steps_of(groups.Data(paths[0]), tmp_path, layout)
    again = steps_of(groups.Data(paths[:1], weights=(2,)), tmp_path, layout)
    assert [alone[n].ids for n in range(5)] == [again[n].ids for n in range(5)]


def test_paths_and_weights_on_the_command_line_and_in_json():
    recipe = recipes.load(CONFIG)
    recipe = dataclasses.replace(recipe, data=groups.Data(("p", "q")))
    argv = "--data.path a.jsonl b.jsonl --data.weights 1 3".split()
    got = commands.override(recipe, argv, "x").data
    assert got.paths == ("a.jsonl", "b.jsonl") and got.weights == (1.0, 3.0)
    one = commands.override(recipes.load(CONFIG), ["--data.path", "c.jsonl"], "x")
    assert one.data.path == "c.jsonl" and one.data.paths == ("c.jsonl",)
    kept = json.loads(json.dumps(recipes.to_json(recipe)))
    assert recipes.from_json(kept).data == recipe.data
    assert recipes.tiny(recipe).data.path == "generated"
    made = groups.Data(("playground:pairs/9000/1", "playground:pairs/9000/2"))
    made = dataclasses.replace(made, weights=(1, 2))
    small = recipes.tiny(dataclasses.replace(recipe, data=made)).data
    assert small.paths == ("playground:pairs/96/1", "playground:pairs/96/2")
    assert small.weights == (1, 2)


# --- streams ---


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 150), st.integers(0, 9))
def test_a_window_moves_no_row_far_and_goes_on_anywhere(count, size, taken, seed):
    rows = range(count)
    whole = list(itertools.islice(streaming.window(rows, size, seed), 200))
    rest = itertools.islice(streaming.window(rows, size, seed, taken), 200 - taken)
    assert list(rest) == whole[taken:]
    for place in range(200):
        assert abs(whole[place] - place % count) < size
    for epoch in range(200 // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == [*rows]


def test_windows_epochs_and_seeds_differ():
    def shown(seed):
        return list(itertools.islice(streaming.window(range(40), 20, seed), 80))

    a = shown(0)
    assert a[:40] != a[40:] and a[:20] != [n - 20 for n in a[20:40]] and a != shown(1)
    with pytest.raises(ValueError, match="Reopened"):
        list(itertools.islice(streaming.window(iter(range(3)), 2, 0), 4))
    with pytest.raises(ValueError, match="must hold one"):
        next(streaming.window([1], 0, 0))


def test_rows_from_elsewhere_and_from_the_middle():
    """`memory://` stands for hf://, gs:// and s3://: fsspec opens them alike."""
    rows = [{"prompt": "a", "chosen": str(n), "rejected": "c"} for n in range(7)]
    with fsspec.open("memory://d/a.jsonl", "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    with fsspec.open("memory://d/a.json", "w") as file:
        json.dump(rows, file)
    with fsspec.open("memory://d/a.parquet", "wb") as file:
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, file, row_group_size=3)
    for end in ("jsonl", "json", "parquet"):
        path = f"memory://d/a.{end}"
        assert list(sources.rows(path)) == list(enumerate(rows))
        assert list(sources.rows(path, 4, 6)) == [(n, rows[n]) for n in (4, 5)]
        assert [e.id for _, e in groups.examples(path)] == [f"a-{n}" for n in range(7)]
        cuts = sources.spans(path, 3)
        assert cuts == [(0, 3), (3, 6), (6, 7)] and sources.spans(path, 99) == [(0, 7)]
    with pytest.raises(ValueError, match="give one of"):
        list(sources.rows("memory://d/a.csv"))


def test_a_converted_data_set_from_elsewhere_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ALANYTHING_CACHE", str(tmp_path / "cache"))

    def put(count):
        rows = [e for _, e in groups.examples("generated")][:count]
        store.write(iter(rows), tmp_path / f"{count}")
        memory = fsspec.filesystem("memory")
        if memory.exists("/set"):
            memory.rm("/set", recursive=True)
        memory.put(str(tmp_path / f"{count}") + "/", "/set/", recursive=True)
        return rows

    for count in (4, 3):
        rows = put(count)
        assert [e.id for _, e in groups.examples("memory://set")] == [
            r.id for r in rows
        ]
    # What changed there was copied anew; what did not is read from here.
    assert len(list((tmp_path / "cache/folders").iterdir())) == 2
    put_back = fetch.folder("memory://set")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.get_file", None)
    assert fetch.folder("memory://set") == put_back


def test_data_that_are_not_there_are_missed_before_a_model_is_loaded(tmp_path):
    for path in (str(tmp_path / "pairs"), "memory://nowhere/a.jsonl"):
        with pytest.raises(FileNotFoundError, match="no data at .*--data.path a file"):
            groups.check_paths(groups.Data(path))
    with pytest.raises(FileNotFoundError, match="no data at heldout"):
        groups.check_paths(groups.Data("generated", heldout_path="heldout"))
    with fsspec.open("memory://there/a.jsonl", "w") as file:
        file.write("{}")
    groups.check_paths(groups.Data(("memory://there/a.jsonl", "playground:pairs/4")))
