"""Masked sums against loops over plain lists."""

import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax.ops import masked
from tests import toys


def expected(items, planned, layout_tokens, values, pick):
    """Per (microbatch slot, branch) a number, by a loop over tokens."""
    out = {}
    for r, row in enumerate(planned):
        at = 0
        for piece in row:
            group = items[piece.group]
            at += len(group.prompt)
            for b in piece.branches:
                scored = np.flatnonzero(group.branches[b].scored)
                out[piece.group, b] = pick([values[r, at + n] for n in scored])
                at += len(group.branches[b].tokens)
    return out


@pytest.mark.parametrize("gaps", [False, True])
def test_response_sum_and_last(gaps):
    items = toys.groups(np.random.default_rng(4), 5, 3, gaps=gaps)
    (batch,), (rows,) = toys.pack(items, rows=4, row_tokens=48)
    values = np.random.default_rng(5).normal(size=batch.tokens.shape)
    slots = {
        g: s for s, g in enumerate(dict.fromkeys(p.group for row in rows for p in row))
    }
    for function, pick in (
        (masked.response_sum, sum),
        (masked.response_last, lambda v: v[-1]),
    ):
        got = np.asarray(function(jnp.asarray(values), batch))
        for (g, b), value in expected(items, rows, 48, values, pick).items():
            assert abs(got[int(batch.table[slots[g], b])] - value) < 1e-5


def test_pairs_by_hand():
    values = jnp.array([5.0, 1.0, 2.0, 7.0])
    table = jnp.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    chosen, rejected, mask = masked.pairs(values, table)
    np.testing.assert_array_equal(mask, [[1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(chosen[0], [5, 5])
    np.testing.assert_array_equal(rejected[0], [1, 2])


def test_mean_ignores_what_is_masked_and_survives_nothing():
    values, mask = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])
    total, count = masked.mean(values, mask)
    assert float(masked.divide(total, count)) == 2.0
    total, count = masked.mean(values, jnp.zeros(3, bool))
    assert float(masked.divide(total, count)) == 0.0
