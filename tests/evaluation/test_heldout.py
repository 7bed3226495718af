"""Intervals and tests by hand, and against published values."""

import numpy as np
import pytest

from alanything_jax.evaluation import heldout
from alanything_jax.pipelines import evaluate


def test_wilson():
    # Newcombe 1998, table I: 81/263 gives [.2553, .3662]; 0/20 gives [0, .1611].
    share = heldout.wilson(81, 263)
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    none = heldout.wilson(0, 20)
    assert none.low == 0 and round(none.high, 4) == 0.1611
    assert heldout.wilson(0, 0).high == 1.0


@pytest.mark.parametrize(
    "gained,lost,p", [(0, 0, 1.0), (5, 0, 0.0625), (8, 2, 0.109375), (1, 1, 1.0)]
)
def test_mcnemar_exact(gained, lost, p):
    before = np.array([0] * gained + [1] * lost + [1, 0], bool)
    after = np.array([1] * gained + [0] * lost + [1, 0], bool)
    assert heldout.mcnemar(before, after) == pytest.approx(p)


def test_accuracy_skips_absent_responses():
    values = np.array([[2.0, 1.0, np.nan], [0.0, 1.0, -1.0], [np.nan, 1.0, 1.0]])
    share = heldout.accuracy(values)
    assert (share.hits, share.of) == (2, 3)


def test_report_says_when_nothing_changed():
    base = heldout.Responses(np.array([[0.0, 1.0]] * 6), np.ones((6, 2)))
    up = heldout.Responses(np.array([[1.5, 1.0]] * 6), np.ones((6, 2)))
    report = {"base": evaluate.figures(base)} | evaluate.compare(base, up)
    assert report["change"]["significant"] and report["aligned"]["accuracy"][0] == 1.0
    report = {"base": evaluate.figures(base)} | evaluate.compare(base, base)
    assert "no significant change" in evaluate.describe(report)[-1]
