"""Rewards by rule, by hand; and sums of them, when one raises, hangs or says nonsense."""

import math
import threading
import time

import numpy as np
import pytest

from alanything_jax.rewards import combine, rules
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.schema import Message, Part, Response


def said(text):
    return Response((Message("assistant", (Part("text", text=text),)),))


def value(reward, text, **record):
    return reward((), said(text), record)


@pytest.mark.parametrize(
    "reward, text, answer, expected",
    [
        (rules.Exact(), " Red\n circle ", "red circle", 1.0),
        (rules.Exact(), "red circle.", "red circle", 0.0),
        (rules.Exact(ignore_case=False), "Red", "red", 0.0),
        (rules.Choice(), "I think A, no: (B).", "B", 1.0),
        (rules.Choice(), "Apples are best", "A", 0.0),
        (rules.Choice(), "A Big Cat", "A", 1.0),
        (rules.Similarity(), "abcd", "abcd", 1.0),
        # "bcd" is common: 2 * 3 of 4 + 4 characters.
        (rules.Similarity(), "bcde", "abcd", 0.75),
        (rules.Similarity(), "", "abcd", 0.0),
    ],
)
def test_by_hand(reward, text, answer, expected):
    assert value(reward, text, answer=answer) == pytest.approx(expected)


def test_math_knows_equal_expressions():
    pytest.importorskip("math_verify", reason="math-verify is not here")
    reward = rules.Math()
    assert value(reward, r"so it is $\frac{1}{2}$", answer="0.5") == 1.0
    assert value(reward, "the answer is 43", answer="42") == 0.0
    assert value(reward, "no idea", answer="42") == 0.0
    with pytest.raises(ValueError, match="is no expression"):
        value(reward, "42", answer="?")


def test_tags_and_length():
    reward = rules.Tags()
    assert value(reward, "<think>a\nb</think>\n<answer>c</answer>\n") == 1.0
    for wrong in (
        "<answer>c</answer><think>a</think>",
        "<think>a</think><answer>c</answer> so",
        "<think>a</think><answer>c</answer><answer>d</answer>",
        "<think>a</think>",
    ):
        assert value(reward, wrong) == 0.0
    limit = rules.Length(4, 8)
    assert [value(limit, "x" * n) for n in (0, 4, 6, 8, 99)] == [0, 0, -0.5, -1, -1]
    with pytest.raises(ValueError, match="free < most"):
        rules.Length(8, 8)


def test_a_row_without_the_field_is_no_zero():
    with pytest.raises(KeyError, match="no 'answer'; it has \\['id'\\]"):
        value(rules.Exact(), "a", id=1)
    with pytest.raises(ValueError, match="one letter"):
        value(rules.Choice(), "A", answer="AB")


def test_weights_clipping_and_whitening_by_hand():
    rewards = Rewards(
        (
            Term("size", lambda p, r, record: record["n"], 2.0, (0.0, 3.0)),
            Term("one", lambda p, r, record: 1.0, -1.0),
        )
    )
    rows = [((), said(""), {"n": n}) for n in (-5, 1, 9)]
    found = combine.score(rewards, rows)
    np.testing.assert_allclose(found.total, [-1, 1, 5])
    np.testing.assert_allclose(found.terms["size"], [0, 1, 3])
    white = combine.score(Rewards(rewards.terms, whiten=True), rows).total
    mean, spread = 5 / 3, math.sqrt((64 + 4 + 100) / 27)
    np.testing.assert_allclose(white, (np.array([-1, 1, 5]) - mean) / spread, rtol=1e-5)


def test_rewards_that_hang_keep_no_other_waiting():
    """More of them than workers, and one that is asked for all rows at once."""
    told = threading.Event()

    def hangs(prompt, response, record):
        if record["n"] < 5:
            told.wait(20)
        return 1.0

    terms = (
        Term("hangs", hangs),
        # Waited for once: asked again for each row, it would answer the later ones.
        Term("batch", lambda rows: told.wait(5) or [1.0] * 8, batched=True),
        Term("one", lambda p, r, record: 1.0),
    )
    rows = [((), said(""), {"n": n}) for n in range(8)]
    found = combine.score(Rewards(terms, seconds=0.2, workers=4), rows)
    told.set()
    assert found.errors == {("hangs", "TimeoutError"): 5, ("batch", "TimeoutError"): 8}
    np.testing.assert_array_equal(
        np.isnan(found.terms["hangs"]), [True] * 5 + [False] * 3
    )
    np.testing.assert_array_equal(found.terms["one"], np.ones(8))


def test_a_term_that_only_looks_on_takes_no_row_out():
    def broken(prompt, response, record):
        raise RuntimeError("away")

    terms = (Term("one", lambda p, r, record: 1.0), Term("eye", broken, weight=0.0))
    found = combine.score(Rewards(terms), [((), said(""), {})])
    assert found.total.tolist() == [1.0] and found.errors == {
        ("eye", "RuntimeError"): 1
    }


def test_failures_are_counted_and_follow_the_policy():
    def shaky(prompt, response, record):
        if record["n"] == 0:
            raise RuntimeError("the judge is away")
        if record["n"] == 1:
            time.sleep(3)
        return math.nan if record["n"] == 2 else 4.0

    terms = (Term("shaky", shaky), Term("one", lambda p, r, record: 1.0))
    rows = [((), said(""), {"n": n}) for n in range(4)]
    found = combine.score(Rewards(terms, seconds=0.3), rows)
    np.testing.assert_array_equal(np.isnan(found.total), [True, True, True, False])
    assert found.total[3] == 5.0 and found.first.startswith("shaky, row 0: RuntimeE")
    assert dict(found.errors) == {
        ("shaky", "RuntimeError"): 1,
        ("shaky", "TimeoutError"): 1,
        ("shaky", "ValueError"): 1,
    }
    floor = combine.score(Rewards(terms, "floor", -2.0, seconds=0.3), rows)
    np.testing.assert_allclose(floor.total, [-1, -1, -1, 5])
    with pytest.raises(RuntimeError, match="away"):
        combine.score(Rewards(terms, "raise"), rows)
    with pytest.raises(ValueError, match="each its own name"):
        Rewards((terms[0], terms[0]))
