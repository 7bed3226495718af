"""Strengths by hand for two models, recovered from simulated battles, and at the edges."""

import numpy as np
import pytest

from alanything_jax.evaluation import bradley_terry as bt

TRUE = np.array([0.9, 0.3, -0.2, -1.0])


def simulate(prompts, seed, tie=0.0, strengths=TRUE):
    """Per-prompt wins, every pair once a prompt; `tie` is the odds of a tie."""
    random = np.random.default_rng(seed)
    models = len(strengths)
    wins = np.zeros((prompts, models, models))
    for i in range(models):
        for j in range(i + 1, models):
            half = (strengths[i] - strengths[j]) / 2
            odds = np.array([np.exp(half), np.exp(-half), tie])
            drawn = random.choice(3, size=prompts, p=odds / odds.sum())
            wins[drawn == 0, i, j] = 1
            wins[drawn == 1, j, i] = 1
            wins[drawn == 2, i, j] = wins[drawn == 2, j, i] = 0.5
    return wins


def test_two_models_by_hand():
    fitted = bt.fit([[0, 30], [10, 0]], prior=1e-7)
    # The strengths differ by the log-odds ln 3; the scale has 400 points for odds of ten.
    np.testing.assert_allclose(fitted, [np.log(3) / 2, -np.log(3) / 2], atol=1e-8)
    gap = 400 * np.log10(3)
    np.testing.assert_allclose(
        bt.elo(fitted), [1000 + gap / 2, 1000 - gap / 2], atol=1e-6
    )


def test_strengths_are_recovered():
    fitted = bt.fit(simulate(6000, 0).sum(axis=0))
    np.testing.assert_allclose(fitted, TRUE - TRUE.mean(), atol=0.08)


def test_the_answer_is_the_maximum():
    wins = simulate(40, 1, 0.5).sum(axis=0)

    def likelihood(values):
        total = -sum(np.log(np.exp(v / 2) + np.exp(-v / 2)) for v in values)
        for i in range(4):
            for j in range(4):
                total -= wins[i, j] * np.log1p(np.exp(values[j] - values[i]))
        return total

    fitted = bt.fit(wins)
    # The mean is taken off: the penalised maximum lies at one shift of it.
    shifts = np.linspace(-0.2, 0.2, 4001)
    best = max(likelihood(fitted + shift) for shift in shifts)
    random = np.random.default_rng(0)
    for _ in range(50):
        assert likelihood(fitted + 0.05 * random.normal(size=4)) < best


def test_many_problems_at_once_equal_one_by_one():
    stack = simulate(30, 2, 0.5).reshape(3, 10, 4, 4).sum(1)
    together = bt.fit(stack)
    for n in range(3):
        np.testing.assert_allclose(together[n], bt.fit(stack[n]), atol=1e-5)


def test_the_prior_is_small():
    free, held = (bt.elo(bt.fit([[0, 60], [40, 0]], prior=p)) for p in (1e-7, 1.0))
    assert 0 < free[0] - held[0] < 0.5


def test_winner_of_everything():
    wins = np.zeros((20, 3, 3))
    wins[:, 0, 1] = wins[:, 0, 2] = wins[:, 1, 2] = 1
    got = bt.rate(wins, names="abc")
    assert got.elo[0] > got.elo[1] > got.elo[2] and np.isfinite(got.elo).all()
    assert got.elo.mean() == pytest.approx(1000) and "prior of 1" in got.notes[0]
    more = bt.rate(np.concatenate([wins] * 5), names="abc")
    assert more.elo[0] > got.elo[0]  # more evidence, further away
    with pytest.raises(ValueError, match="prior is 0"):
        bt.fit(wins.sum(0), prior=0)


def test_sets_that_never_met():
    wins = np.zeros((10, 4, 4))
    wins[:8, 0, 1] = wins[8:, 1, 0] = wins[:5, 2, 3] = wins[5:, 3, 2] = 1
    got = bt.rate(wins, names="abcd")
    assert "(a, b; c, d)" in got.notes[0] and len(got.notes) == 1
    assert got.elo[0] + got.elo[1] == pytest.approx(2000, abs=1e-4)
    assert got.elo[2] == pytest.approx(1000, abs=1e-4)
    assert bt.parts(wins.sum(0)) == [[0, 1], [2, 3]]
    # A model without a battle is a set of its own, at the mean.
    lone = bt.rate(np.pad(wins, ((0, 0), (0, 1), (0, 1))))
    assert lone.elo[4] == pytest.approx(1000, abs=1e-4) and "model 4" in lone.notes[0]


def test_only_ties():
    got = bt.rate(np.tile((1 - np.eye(3)) / 2, (5, 1, 1)))
    np.testing.assert_allclose(got.elo, 1000, atol=1e-4)
    np.testing.assert_allclose(got.above, 0.5)
    assert got.notes == ()


def test_intervals_cover_and_are_seeded():
    truth = 1000 + bt.SCALE * (TRUE - TRUE.mean())
    hits = []
    for seed in range(60):
        got = bt.rate(simulate(80, seed), resamples=200, seed=seed)
        hits.append((got.low <= truth) & (truth <= got.high))
    assert 0.90 <= np.mean(hits) <= 0.99
    again = bt.rate(simulate(80, 59), resamples=200, seed=59)
    np.testing.assert_array_equal(got.low, again.low)
    assert got.above[0, 3] == 1.0 and got.above[3, 0] == 0.0


def test_prompts_are_what_is_resampled():
    # Ten copies of each battle in the same prompt are no more evidence than one.
    wins = simulate(50, 3)
    one, ten = bt.rate(wins, prior=0.1), bt.rate(10 * wins, prior=1.0)
    np.testing.assert_allclose(one.low, ten.low, atol=1e-3)


def test_one_prompt_has_no_interval_and_no_battle_no_rating():
    got = bt.rate(simulate(1, 0))
    assert np.isnan(got.low).all() and "One prompt" in got.notes[-1]
    with pytest.raises(ValueError, match="nothing to rate"):
        bt.rate(np.zeros((3, 2, 2)))


@pytest.mark.parametrize(
    "wins,match",
    [
        ([[0, 1, 2]], "models, models"),
        ([[0, -1], [1, 0]], "not negative"),
        ([[1, 1], [1, 0]], "met itself"),
    ],
)
def test_bad_counts(wins, match):
    with pytest.raises(ValueError, match=match):
        bt.fit(wins)


@pytest.mark.parametrize("battles", [1e2, 1e6, 1e9])
def test_far_apart_strengths_settle(battles):
    wins = battles * np.triu(np.ones((8, 8)), 1)
    fitted = bt.fit(wins)
    assert (np.diff(fitted) < 0).all() and np.isfinite(fitted).all()
