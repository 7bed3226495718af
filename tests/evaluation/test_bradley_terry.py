"""Strengths by hand for two models, recovered from simulated battles, and at the edges."""

import numpy as np
import pytest

from alanything_jax.evaluation import bradley_terry as bt

TRUE = np.array([0.9, 0.3, -0.2, -1.0])


def simulate(prompts, seed, tie=0.0, strengths=TRUE):
    """Per-prompt wins and ties, every pair once a prompt, of Davidson's model."""
    random = np.random.default_rng(seed)
    models = len(strengths)
    wins, ties = np.zeros((2, prompts, models, models))
    for i in range(models):
        for j in range(i + 1, models):
            half = (strengths[i] - strengths[j]) / 2
            odds = np.array([np.exp(half), np.exp(-half), tie])
            drawn = random.choice(3, size=prompts, p=odds / odds.sum())
            wins[drawn == 0, i, j] = 1
            wins[drawn == 1, j, i] = 1
            ties[drawn == 2, i, j] = ties[drawn == 2, j, i] = 1
    return wins, ties


def test_two_models_by_hand():
    fitted = bt.fit([[0, 30], [10, 0]], prior=0)
    # The strengths differ by the log-odds ln 3; the scale has 400 points for odds of ten.
    np.testing.assert_allclose(
        fitted.values, [np.log(3) / 2, -np.log(3) / 2], atol=1e-8
    )
    gap = 400 * np.log10(3)
    np.testing.assert_allclose(fitted.elo, [1000 + gap / 2, 1000 - gap / 2], atol=1e-6)


def test_a_tie_is_half_a_win():
    ties = [[0, 10], [10, 0]]
    with_ties = bt.fit([[0, 25], [5, 0]], ties, prior=0)
    np.testing.assert_allclose(
        with_ties.values, bt.fit([[0, 30], [10, 0]], prior=0).values, atol=1e-8
    )


def test_davidson_by_hand():
    # Two models: three free frequencies, two parameters, fitted exactly:
    # P(win)/P(loss) = e^d, P(tie)^2 / (P(win) P(loss)) = v^2.
    fitted = bt.fit(
        [[0, 40], [10, 0]], [[0, 30], [30, 0]], tie_model="davidson", prior=0
    )
    assert fitted.values[0] - fitted.values[1] == pytest.approx(np.log(4), abs=1e-6)
    assert float(fitted.tie) == pytest.approx(30 / np.sqrt(400), abs=1e-6)


@pytest.mark.parametrize("tie_model,tie", [("half", 0.0), ("davidson", 0.7)])
def test_strengths_are_recovered(tie_model, tie):
    wins, ties = (x.sum(axis=0) for x in simulate(6000, 0, tie))
    fitted = bt.fit(wins, ties, tie_model=tie_model)
    np.testing.assert_allclose(fitted.values, TRUE - TRUE.mean(), atol=0.08)
    assert float(fitted.tie) == pytest.approx(tie, abs=0.05)


def test_the_answer_is_the_maximum():
    wins, ties = (x.sum(axis=0) for x in simulate(40, 1, 0.5))
    fitted = bt.fit(wins, ties, tie_model="davidson", prior=0)

    def likelihood(values, v):
        total = 0.0
        for i in range(4):
            for j in range(4):
                half = (values[i] - values[j]) / 2
                norm = np.log(np.exp(half) + np.exp(-half) + v)
                total += wins[i, j] * (half - norm)
                total += ties[i, j] * (np.log(v) - norm) / 2
        return total

    best = likelihood(fitted.values, float(fitted.tie))
    random = np.random.default_rng(0)
    for _ in range(50):
        near = fitted.values + 0.05 * random.normal(size=4)
        assert likelihood(near, float(fitted.tie) * np.exp(random.normal() / 20)) < best


def test_many_problems_at_once_equal_one_by_one():
    wins, ties = simulate(30, 2, 0.5)
    stacks = wins.reshape(3, 10, 4, 4).sum(1), ties.reshape(3, 10, 4, 4).sum(1)
    together = bt.fit(*stacks, tie_model="davidson")
    for n in range(3):
        alone = bt.fit(stacks[0][n], stacks[1][n], tie_model="davidson")
        np.testing.assert_allclose(together.values[n], alone.values, atol=1e-5)


def test_the_prior_is_small():
    free, held = (bt.fit([[0, 60], [40, 0]], prior=p).elo for p in (0.0, 1.0))
    assert 0 < free[0] - held[0] < 0.5


@pytest.mark.parametrize("tie_model", ["half", "davidson"])
def test_winner_of_everything(tie_model):
    wins = np.zeros((20, 3, 3))
    wins[:, 0, 1] = wins[:, 0, 2] = wins[:, 1, 2] = 1
    got = bt.rate(wins, names="abc", tie_model=tie_model)
    assert got.elo[0] > got.elo[1] > got.elo[2] and np.isfinite(got.elo).all()
    assert got.elo.mean() == pytest.approx(1000) and "prior of 1" in got.notes[0]
    more = bt.rate(np.concatenate([wins] * 5), names="abc", tie_model=tie_model)
    assert more.elo[0] > got.elo[0]  # more evidence, further away
    with pytest.raises(ValueError, match="prior above 0"):
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
    ties = np.tile(1 - np.eye(3), (5, 1, 1))
    for tie_model in ("half", "davidson"):
        got = bt.rate(np.zeros((5, 3, 3)), ties, tie_model=tie_model)
        np.testing.assert_allclose(got.elo, 1000, atol=1e-4)
        np.testing.assert_allclose(got.above, 0.5)
        assert got.notes == ()


def test_intervals_cover_and_are_seeded():
    truth = 1000 + bt.SCALE * (TRUE - TRUE.mean())
    hits = []
    for seed in range(60):
        got = bt.rate(*simulate(80, seed), resamples=200, seed=seed)
        hits.append((got.low <= truth) & (truth <= got.high))
    assert 0.90 <= np.mean(hits) <= 0.99
    again = bt.rate(*simulate(80, 59), resamples=200, seed=59)
    np.testing.assert_array_equal(got.low, again.low)
    assert got.above[0, 3] == 1.0 and got.above[3, 0] == 0.0


def test_prompts_are_what_is_resampled():
    # Ten copies of each battle in the same prompt are no more evidence than one.
    wins, ties = simulate(50, 3)
    one = bt.rate(wins, ties, prior=0.1)
    ten = bt.rate(10 * wins, 10 * ties, prior=1.0)
    np.testing.assert_allclose(one.low, ten.low, atol=1e-3)


def test_one_prompt_has_no_interval_and_no_battle_no_rating():
    wins, ties = simulate(1, 0)
    got = bt.rate(wins, ties)
    assert np.isnan(got.low).all() and "One prompt" in got.notes[-1]
    with pytest.raises(ValueError, match="nothing to rate"):
        bt.rate(np.zeros((3, 2, 2)))


@pytest.mark.parametrize(
    "wins,ties,match",
    [
        ([[0, 1, 2]], None, "models, models"),
        ([[0, -1], [1, 0]], None, "not negative"),
        ([[1, 1], [1, 0]], None, "met itself"),
        ([[0, 1], [1, 0]], [[0, 1], [0, 0]], "symmetric"),
    ],
)
def test_bad_counts(wins, ties, match):
    with pytest.raises(ValueError, match=match):
        bt.fit(wins, ties)
