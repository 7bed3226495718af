"""How far raters agree: shares, Cohen's kappa, Krippendorff's alpha, their intervals.

A column holds one rater's values, one per item: numbers, or any labels where distance
plays no part. NaN or None is a missing value. What is undefined (no pair of values, or
no variation at all: 0/0) is NaN, never 0 or 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from alanything_jax.schema import Example

Weights = Literal["none", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic with its percentile bootstrap interval.

    Attributes:
      value: on the items as they are.
      low, high: NaN where the statistic is undefined.
      items: how many were resampled.
      undefined: share of resamples without a defined value; they are left out.
    """

    value: float
    low: float
    high: float
    items: int
    undefined: float = 0.0

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.items})"


def coded(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values as codes into their sorted distinct values; -1 = missing.

        [3.0, 1.0, NaN] -> [1 0 -1], [1. 3.]

    Args:
      values: an array or nested list of any shape.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "bifu":  # None beside text must not become "None"
        array = np.asarray(values, dtype=object)
    there = (array == array) & ~np.equal(array, None)
    codes = np.full(array.shape, -1)
    present = np.array(array[there].tolist())
    distinct, codes[there] = np.unique(present, return_inverse=True)
    return codes, distinct


def share(first: Any, second: Any) -> float:
    """Share of the items both rated, [N] each, on which they say the same."""
    codes, _ = coded(_pair(first, second))
    both = (codes >= 0).all(axis=0)
    return float((codes[0] == codes[1])[both].mean()) if both.any() else float("nan")


def cohen_kappa(first: Any, second: Any, weights: Weights = "none") -> float:
    """Cohen's kappa of two raters, 1 - observed / expected disagreement.

    Cohen 1960; weighted: Cohen 1968, with the distance of two values, or its square, as
    the weight. The distance is that of the numbers themselves, so a grade that nobody
    gave does not pull its neighbours together.

    Args:
      first, second: [N] values each; items that either left out are not counted.

    Raises ValueError: unknown weights, columns of unequal length, or weights on labels.
    """
    if weights not in ("none", "linear", "quadratic"):
        raise ValueError(f"weights {weights!r}: choose none, linear or quadratic.")
    codes, values = coded(_pair(first, second))
    codes = codes[:, (codes >= 0).all(axis=0)]
    size = len(values)
    if weights == "none":
        distance = 1.0 - np.eye(size)
    else:
        distance = np.abs(_distances(values)) ** (1 if weights == "linear" else 2)
    flat = codes[0] * size + codes[1]
    table = np.bincount(flat, minlength=size * size).reshape(size, size)
    expected = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1)
    return _above_chance((table * distance).sum(), (expected * distance).sum())


def _above_chance(observed, expected):
    return float(1 - observed / expected) if expected else float("nan")


def krippendorff_alpha(ratings: Any, level: Level = "nominal") -> float:
    """Krippendorff's alpha of any number of raters, 1 - observed / expected disagreement.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": coincidences of the
    values within an item, each item weighing as many values as it has. Items with fewer
    than two values do not count.

    Args:
      ratings: [raters, N], missing values allowed.
      level: what a difference means: any (nominal), ranks between (ordinal), size
        (interval).

    Raises:
      ValueError: an unknown level, a wrong shape, or labels where numbers are needed.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"level {level!r}: choose nominal, ordinal or interval.")
    codes, values = coded(ratings)
    if codes.ndim != 2:
        raise ValueError(f"ratings of shape {codes.shape}: give [raters, items].")
    size = len(values)
    counts = (codes[:, :, None] == np.arange(size)).sum(axis=0)  # [N, values]
    counts = counts[counts.sum(axis=1) > 1].astype(np.float64)
    if not len(counts):
        return float("nan")
    scaled = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = scaled.T @ counts - np.diag(scaled.sum(axis=0))
    totals = counts.sum(axis=0)
    if level == "nominal":
        squared = 1.0 - np.eye(size)
    elif level == "interval":
        squared = _distances(values) ** 2
    else:
        _distances(values)  # Ranks need an order: labels are refused here.
        middle = np.cumsum(totals) - totals / 2
        squared = np.subtract.outer(middle, middle) ** 2
    expected = totals @ squared @ totals / (totals.sum() - 1)
    return _above_chance((coincidences * squared).sum(), expected)


def _pair(first, second):
    if len(first) != len(second):
        raise ValueError(f"columns of {len(first)} and {len(second)} items.")
    return [first, second]


def _distances(values):
    """[V, V] differences of the values."""
    if values.size and values.dtype.kind not in "bifu":
        raise ValueError(
            f"values such as {values[0]!r} have no distance: give numbers, or use the "
            "nominal level and no weights."
        )
    return np.subtract.outer(values.astype(float), values.astype(float))


def bootstrap(
    statistic: Callable[..., float],
    *columns: Any,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic's percentile interval over items drawn with replacement.

    Efron 1979. Items are the last axis of every column; all columns are resampled alike,
    so pairs stay pairs. Equal seeds give equal intervals.

    Args:
      statistic: `statistic(*columns)`, NaN where undefined.
      columns: arrays [..., N].

    Raises ValueError: no columns, or columns of unequal N.
    """
    arrays = [np.asarray(column) for column in columns]
    items, *others = {array.shape[-1] for array in arrays}
    if others:
        raise ValueError(f"columns of {[items, *others]} items: give equal numbers.")
    nan = float("nan")
    if not items:
        return Interval(nan, nan, nan, 0, nan)
    value = float(statistic(*arrays))
    drawn = np.random.default_rng(seed).integers(items, size=(samples, items))
    found = np.array([statistic(*(a[..., rows] for a in arrays)) for rows in drawn])
    defined = found[~np.isnan(found)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(defined, tails) if len(defined) else (nan, nan)
    undefined = 1 - len(defined) / samples if samples else nan
    return Interval(value, float(low), float(high), items, undefined)


def ratings(
    examples: Sequence[Example], dimension: str
) -> tuple[list[str], np.ndarray]:
    """The raters of a dimension, and [raters, N] scores; N counts every response.

    NaN where a rater said nothing; of several scores by one rater the mean.
    """
    said: dict[tuple[str, int], list[float]] = {}
    first = 0
    for example in examples:
        for rating in example.feedback.ratings:
            if rating.dimension == dimension:
                place = rating.rater or "unnamed", first + rating.response
                said.setdefault(place, []).append(rating.score)
        first += len(example.responses)
    raters = sorted({rater for rater, _ in said})
    table = np.full((len(raters), first), np.nan)
    for (rater, item), scores in said.items():
        table[raters.index(rater), item] = np.mean(scores)
    return raters, table


def choices(
    examples: Sequence[Example], dimension: str | None = None
) -> tuple[list[str], np.ndarray]:
    """The raters, and [raters, N] preferred responses of N examples; -1 = a tie.

    Reads `extra["choices"]` as `data/feedback.py` writes it; None = the overall choice.
    """
    said = [
        {
            c["rater"]: -1 if c["chosen"] is None else c["chosen"]
            for c in example.extra.get("choices", ())
            if c["dimension"] == dimension
        }
        for example in examples
    ]
    raters = sorted({rater for row in said for rater in row})
    columns = [[row.get(rater, np.nan) for row in said] for rater in raters]
    return raters, np.array(columns, np.float64).reshape(len(raters), len(said))


def between(
    examples: Sequence[Example], first: str, second: str, **options: Any
) -> dict[str, dict[str, Interval]]:
    """Agreement of two raters, such as a judge and a person, with intervals.

    Items are responses for a dimension's grades, examples for the overall choice.

    Args:
      options: of `bootstrap`.

    Returns per dimension `share`, `kappa` (quadratic weights) and `alpha` (ordinal);
    for "choice" `share`, `kappa` (unweighted) and `alpha` (nominal).

    Raises ValueError: nobody of that name rated anything.
    """
    dimensions = {r.dimension for e in examples for r in e.feedback.ratings}
    tables = {name: ratings(examples, name) for name in sorted(dimensions)}
    tables["choice"] = choices(examples)
    known = sorted({rater for raters, _ in tables.values() for rater in raters})
    for name in (first, second):
        if name not in known:
            raise ValueError(f"no rater {name!r}; there are {known}.")
    out = {}
    for name, (raters, table) in tables.items():
        if not {first, second} <= set(raters):
            continue
        pair = table[[raters.index(first), raters.index(second)]]
        pair = pair[:, ~np.isnan(pair).any(axis=0)]
        weights: Weights = "none" if name == "choice" else "quadratic"
        level: Level = "nominal" if name == "choice" else "ordinal"
        statistics = {
            "share": lambda p: share(*p),
            "kappa": lambda p, w=weights: cohen_kappa(*p, weights=w),
            "alpha": lambda p, k=level: krippendorff_alpha(p, k),
        }
        out[name] = {n: bootstrap(s, pair, **options) for n, s in statistics.items()}
    return out
