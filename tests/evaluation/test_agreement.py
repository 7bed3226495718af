"""Agreement by hand and against published examples; what is undefined is NaN."""

import numpy as np
import pytest

from alanything_jax.data import feedback
from alanything_jax.evaluation import agreement
from alanything_jax.schema import Example, Message, Part, Rating, Response

_ = None
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", data C: 4 observers,
# 12 units. Printed there: nominal .743, ordinal .815, interval .849.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


@pytest.mark.parametrize(
    "level,published", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_the_published_example(level, published):
    assert agreement.krippendorff_alpha(OBSERVERS, level) == pytest.approx(
        published, abs=5e-4
    )
    floats = np.array(OBSERVERS, np.float64)  # None becomes NaN
    assert agreement.krippendorff_alpha(floats, level) == pytest.approx(
        published, abs=5e-4
    )


def test_alpha_binary_two_observers_published():
    # Same source, data A: 10 units, two observers, binary; alpha = .095.
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    for level in ("nominal", "ordinal", "interval"):
        value = agreement.krippendorff_alpha([meg, owen], level)
        assert value == pytest.approx(0.095, abs=5e-4)


def test_alpha_takes_labels_at_the_nominal_level_only():
    # Same source, data B: 12 articles, five labels; alpha = .692.
    meg, owen = list("aabbdcccedda"), list("babbbcccedd") + ["d"]
    assert agreement.krippendorff_alpha([meg, owen]) == pytest.approx(0.692, abs=5e-4)
    with pytest.raises(ValueError, match="nominal"):
        agreement.krippendorff_alpha([meg, owen], "ordinal")


def columns(table):
    """Two columns whose cross table is `table`."""
    rows, cols = np.indices(np.shape(table))
    counts = np.ravel(table)
    return np.repeat(rows.ravel(), counts), np.repeat(cols.ravel(), counts)


def test_kappa_by_hand():
    # 35 of 50 agree (.7); by chance .5 * .6 + .5 * .4 = .5; (.7 - .5) / (1 - .5).
    first, second = columns([[20, 5], [10, 15]])
    assert agreement.share(first, second) == pytest.approx(0.7)
    assert agreement.cohen_kappa(first, second) == pytest.approx(0.4)


def test_weighted_kappa_by_hand():
    first, second = [0, 1, 2, 2], [0, 2, 2, 0]
    # Linear: observed (0 + 1 + 0 + 2) / 4. Expected of marginals (1,1,2)/4, (2,0,2)/4:
    # (2*0 + 2*2 + 2*1 + 2*1 + 4*2 + 4*0) / 16 = 1. Quadratic: 5/4 against
    # (2*4 + 2 + 2 + 4*4) / 16 = 28/16.
    linear = agreement.cohen_kappa(first, second, "linear")
    quadratic = agreement.cohen_kappa(first, second, "quadratic")
    assert linear == pytest.approx(1 - 0.75 / 1)
    assert quadratic == pytest.approx(1 - (5 / 4) / (28 / 16))


def test_quadratic_kappa_is_the_correlation_where_marginals_are_equal():
    # Fleiss & Cohen 1973.
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 60)
    second = first.copy()
    second[:20] = rng.permutation(second[:20])
    kappa = agreement.cohen_kappa(first, second, "quadratic")
    assert kappa == pytest.approx(np.corrcoef(first, second)[0, 1])


def test_a_grade_nobody_gave_keeps_its_distance():
    # Marginals (1,1,2)/4 twice. Linear on 0, 1, 3: observed (2 + 2) / 4, expected
    # 2 * (1 + 2*3 + 2*2) / 16; were 3 the grade after 1: (1 + 1) / 4, 2 * (1 + 4 + 2) / 16.
    kappa = agreement.cohen_kappa([0, 1, 3, 3], [0, 3, 3, 1], "linear")
    assert kappa == pytest.approx(1 - 1 / (22 / 16))
    by_place = agreement.cohen_kappa([0, 1, 2, 2], [0, 2, 2, 1], "linear")
    assert by_place == pytest.approx(1 - 0.5 / (14 / 16))


def test_missing_values_leave_the_item_out():
    nan = np.nan
    assert agreement.share([1, nan, 2], [1, 1, 3]) == 0.5
    assert agreement.cohen_kappa(["a", None, "b"], ["a", "b", "b"]) == 1.0


@pytest.mark.parametrize(
    "first,second", [([], []), ([np.nan, 1.0], [1.0, np.nan]), ([2, 2], [2, 2])]
)
def test_undefined_is_nan(first, second):
    assert np.isnan(agreement.cohen_kappa(first, second))
    assert np.isnan(agreement.krippendorff_alpha([first, second]))
    assert np.isnan(agreement.share(first, second)) == (first != [2, 2])


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="quadratic"):
        agreement.cohen_kappa([1], [1], "cubic")
    with pytest.raises(ValueError, match="ordinal"):
        agreement.krippendorff_alpha([[1]], "ratio")
    with pytest.raises(ValueError, match="2 and 1"):
        agreement.share([1, 2], [1])
    with pytest.raises(ValueError, match="no distance"):
        agreement.cohen_kappa(["a", "b"], ["b", "a"], "linear")


def test_bootstrap_covers_and_repeats():
    covered = 0
    for seed in range(60):
        column = np.random.default_rng(seed).normal(size=50)
        found = agreement.bootstrap(np.mean, column, samples=400, seed=seed)
        assert found.low < found.value < found.high and found.items == 50
        covered += found.low <= 0 <= found.high
    assert 51 <= covered <= 60
    # The normal approximation of a mean's interval: 1.96 / sqrt(50) to either side.
    width = (found.high - found.low) / (2 * 1.96 * column.std() / np.sqrt(50))
    assert 0.85 < width < 1.15
    again = agreement.bootstrap(np.mean, column, samples=400, seed=seed)
    assert again == found


def test_bootstrap_resamples_pairs_and_says_what_is_undefined():
    first = np.array([0.0, 1.0, 0.0, 1.0])
    same = agreement.bootstrap(agreement.cohen_kappa, first, first)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    # All four draws from one half: 2 / 2^4.
    assert same.undefined == pytest.approx(0.125, abs=0.03)
    table = np.stack([first, first])
    alpha = agreement.bootstrap(agreement.krippendorff_alpha, table, samples=50)
    assert alpha.value == 1.0
    none = agreement.bootstrap(agreement.cohen_kappa, first[:0], first[:0])
    assert np.isnan([none.value, none.low, none.high]).all()
    with pytest.raises(ValueError, match="equal"):
        agreement.bootstrap(agreement.share, first, first[:2])


def rated(number, ann, judge):
    answers = [Response((Message("assistant", (Part("text", text=t),)),)) for t in "xy"]
    example = Example(str(number), (), tuple(answers))
    ratings = [
        Rating(n, "clarity", float(score), rater=rater)
        for rater, scores in (("ann", ann), ("judge", judge))
        for n, score in enumerate(scores)
    ]
    votes = {2: [0.0, 1.0], 0: [0.5, 0.5], -2: [1.0, 0.0]}
    made = [
        feedback.choice(rater, votes[2 * int(np.sign(b - a))])
        for rater, (a, b) in (("ann", ann), ("judge", judge))
    ]
    return feedback.add(example, ratings=ratings, choices=made)


def test_judge_against_person():
    examples = [
        rated(0, (0, 3), (1, 3)),
        rated(1, (2, 1), (2, 1)),
        rated(2, (3, 3), (3, 0)),
    ]
    raters, table = agreement.ratings(examples, "clarity")
    assert raters == ["ann", "judge"]
    assert table.tolist() == [[0, 3, 2, 1, 3, 3], [1, 3, 2, 1, 3, 0]]
    assert agreement.choices(examples)[1].tolist() == [[1, 0, -1], [1, 0, 0]]
    found = agreement.between(examples, "ann", "judge", samples=100)
    assert found["clarity"]["share"].value == pytest.approx(4 / 6)
    assert found["clarity"]["kappa"].value == pytest.approx(
        agreement.cohen_kappa(*table, weights="quadratic")
    )
    assert found["choice"]["share"].value == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="'bob'.*ann"):
        agreement.between(examples, "ann", "bob")
