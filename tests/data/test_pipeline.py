"""The order is a pure function of (seed, step); planning keeps what a step holds."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax.data import packing, pipeline
from tests import toys


def source(groups, **changes):
    layout = packing.Layout(2, 48, 4, 2, ("margin",))
    return pipeline.StepSource(groups, layout, 4, **changes)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(1, 40),
    per_step=st.integers(1, 9),
    epochs=st.integers(1, 3),
)
def test_every_epoch_shows_every_group_once(seed, size, per_step, epochs):
    steps = -(-size * epochs // per_step)
    seen = [n for s in range(steps) for n in pipeline.members(seed, s, per_step, size)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_any_step_is_reached_by_arithmetic():
    groups = toys.groups(np.random.default_rng(0), 11)
    steps = source(groups, seed=3)
    walked = list(pipeline.iterate(steps, 0, 7))
    jumped = list(pipeline.iterate(steps, 5, 7))
    assert [d.step for d in walked] == list(range(7))
    for one, other in zip(walked[5:], jumped, strict=True):
        assert one.ids == other.ids
        for a, b in zip(one.microbatches, other.microbatches, strict=True):
            for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
                np.testing.assert_equal(x, y)
    other_seed = list(pipeline.iterate(source(groups, seed=4), 0, 7))
    assert [d.ids for d in other_seed] != [d.ids for d in walked]


def test_processes_pack_what_threads_pack(monkeypatch):
    """In the same order, from any step on; off the chips of the process that trains."""
    groups = toys.groups(np.random.default_rng(0), 11)
    alone, beside = source(groups, seed=3), source(groups, seed=3, workers=2)
    expected = list(alone.steps(2, 6))
    for one, other in zip(expected, beside.steps(2, 6), strict=True):
        assert (one.step, one.ids, one.tokens) == (other.step, other.ids, other.tokens)
        for a, b in zip(one.microbatches, other.microbatches, strict=True):
            for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
                np.testing.assert_equal(x, y)
    with monkeypatch.context() as patched:
        patched.setattr(jax.config, "update", lambda *what: seen.append(what))
        seen = []
        pipeline._off_the_chips(0, 2)
    assert seen == [("jax_platforms", "cpu")]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 8), couples=st.booleans())
def test_packing_keeps_every_branch_once(seed, count, couples):
    items = toys.groups(np.random.default_rng(seed), count, 3)
    layout = packing.Layout(3, 24, count, 3)
    planned = packing.plan(items, layout, couples)
    placed = [
        (p.group, b)
        for rows in planned
        for row in rows
        for p in row
        for b in p.branches
    ]
    assert sorted(placed) == [(g, b) for g in range(count) for b in range(3)]
    for rows in planned:
        assert len(rows) <= layout.rows
        assert all(sum(p.length for p in row) <= layout.row_tokens for row in rows)
    if couples:
        where = {}
        for m, rows in enumerate(planned):
            for piece in (p for row in rows for p in row):
                assert where.setdefault(piece.group, m) == m


def test_a_row_by_hand():
    """One group: prompt of 2, responses of 2 and 1 tokens, in a row of 7."""
    item = toys.group(np.random.default_rng(0), "g", prompt=2, sizes=(2, 1))
    layout = packing.Layout(1, 7, 1, 2, ("margin",))
    batch = packing.lay_out([item], packing.plan([item], layout, True)[0], layout)
    np.testing.assert_equal(batch.group[0], [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_equal(batch.branch[0], [0, 0, 1, 1, 2, 0, 0])
    np.testing.assert_equal(batch.index[0], [0, 1, 2, 3, 2, 0, 0])
    np.testing.assert_equal(batch.source[0], [-1, -1, 1, 2, 1, -1, -1])
    np.testing.assert_equal(batch.response[0], [-1, -1, 0, 0, 1, -1, -1])
    np.testing.assert_equal(batch.table, [[0, 1]])
    np.testing.assert_equal(batch.numbers["margin"], np.float32([0.5]))
    assert batch.position.shape == (1, 3, 7) and not batch.stream.any()
    assert not batch.span.any()


def test_too_long_and_missing_numbers_are_named():
    rng = np.random.default_rng(0)
    long = toys.group(rng, "long", prompt=20, sizes=(9, 9))
    with pytest.raises(
        ValueError, match="record long: .* 29 tokens, more than a row of 24"
    ):
        packing.plan([long], packing.Layout(1, 24, 1, 2), True)
    with pytest.raises(
        ValueError, match="record long needs 2 rows .* raise rows_per_micro"
    ):
        packing.plan([long], packing.Layout(1, 30, 1, 2), True)
    layout = packing.Layout(1, 64, 1, 2, ("weight",))
    with pytest.raises(ValueError, match="have no 'weight' .first: .'long'"):
        packing.lay_out([long], packing.plan([long], layout, True)[0], layout)
    with pytest.raises(ValueError, match="no record is left to train on"):
        source([])


def test_take_is_the_inverse_of_lay_out():
    items = toys.groups(np.random.default_rng(2), 5, 3)
    layout = packing.Layout(2, 40, 5, 3)
    for rows in packing.plan(items, layout, False):
        batch = packing.lay_out(items, rows, layout)
        for (g, b), tokens in packing.take(items, rows, batch.tokens).items():
            np.testing.assert_equal(tokens, items[g].branches[b].tokens)
