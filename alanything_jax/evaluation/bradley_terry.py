"""Ratings from pairwise battles: Bradley-Terry strengths, with intervals.

Model i beats model j with odds exp(s_i - s_j) (Bradley & Terry 1952); strengths are
fitted by penalised maximum likelihood. A tie is half a win for each side.

Likelihood alone has a finite answer only where every model is linked to every other by
a chain of wins (Ford 1957; Hunter 2004). So each model also plays `prior` battles, half
of them won, against an imagined opponent of average strength: one battle among hundreds
moves nothing, and a model that won everything, or was never compared, gets a defined
rating. `Ratings.notes` says where that prior decided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

MEAN, SCALE = 1000.0, 400.0 / math.log(10.0)


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings of M models with percentile intervals over prompts.

    Attributes:
      elo, low, high: [M]; low and high are NaN with fewer than two prompts.
      above: [M, M] share of resamples that rate the row's model above the column's (an
        equal rating counts half): what says whether two models differ, since intervals
        of two models that overlap do not.
      notes: what a reader must know, in sentences; empty where nothing is special.
    """

    elo: np.ndarray
    low: np.ndarray
    high: np.ndarray
    above: np.ndarray
    notes: tuple[str, ...]


def fit(wins: np.ndarray, *, prior: float = 1.0) -> np.ndarray:
    """Strengths [..., M] in natural-log units, with mean zero over models.

    Args:
      wins: [..., M, M], how often the row's model beat the column's; a tie is half a
        win for each.
      prior: imagined battles of each model against an average one, more than 0.

    Raises ValueError: counts that are no counts, or a prior that is not above 0.
    """
    wins = _counts(wins)
    if not prior > 0:
        raise ValueError(f"prior is {prior}: give a number of battles above 0.")
    models = wins.shape[-1]
    found = _newton(wins.reshape(-1, models, models), prior)
    return (found - found.mean(axis=-1, keepdims=True)).reshape(wins.shape[:-1])


def elo(strengths: np.ndarray) -> np.ndarray:
    """Strengths on the scale where 400 points are odds of ten to one, mean 1000."""
    return MEAN + SCALE * strengths


def rate(
    wins: np.ndarray,
    *,
    names: Sequence[str] = (),
    prior: float = 1.0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Ratings:
    """Ratings, with intervals from resampling whole prompts (percentile bootstrap).

    All battles of a prompt are resampled together: they share its difficulty.

    Args:
      wins: [P, M, M] per prompt, as `fit` takes them.
      names: for the notes; default "model 0", ...

    Raises ValueError: no battle at all, or counts that are no counts.
    """
    wins = _counts(wins)
    if wins.ndim != 3:
        raise ValueError(f"wins has shape {wins.shape}, not [prompts, models, models].")
    if not wins.any():
        raise ValueError("no battle was decided or tied: there is nothing to rate.")
    total, (prompts, models) = wins.sum(axis=0), wins.shape[:2]
    names = list(names) or [f"model {n}" for n in range(models)]
    notes = _notes(total, names, prior)
    low = high = np.full(models, np.nan)
    above = np.full((models, models), np.nan)
    if prompts < 2:
        notes += ("One prompt gives no interval.",)
    else:
        random, even = np.random.default_rng(seed), np.full(prompts, 1 / prompts)
        drawn = random.multinomial(prompts, even, size=resamples)
        again = elo(fit(np.tensordot(drawn, wins, axes=1), prior=prior))
        tail = (1 - level) / 2
        low, high = np.quantile(again, [tail, 1 - tail], axis=0)
        gap = again[:, :, None] - again[:, None, :]
        same = np.abs(gap) < 1e-6
        above = ((gap > 0) & ~same).mean(axis=0) + same.mean(axis=0) / 2
    return Ratings(elo(fit(total, prior=prior)), low, high, above, notes)


def parts(games: np.ndarray) -> list[list[int]]:
    """Models [M] split into sets that have met, directly or through others.

    Args:
      games: [M, M] battles between each two, either way round.
    """
    met = _reach((games + games.T) > 0)
    return [row.nonzero()[0].tolist() for n, row in enumerate(met) if row.argmax() == n]


def _counts(wins):
    wins = np.asarray(wins, float)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"wins {wins.shape} must be [..., models, models].")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins must be finite and not negative.")
    if np.diagonal(wins, axis1=-2, axis2=-1).any():
        raise ValueError("a model met itself: the diagonals must be 0.")
    return wins


def _reach(edges):
    """[M, M] bool: there is a path along `edges`; every model reaches itself."""
    path = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges).bit_length()):
        path = (path.astype(int) @ path.astype(int)) > 0
    return path


def _notes(wins, names, prior):
    notes, groups = [], parts(wins)
    if len(groups) > 1:
        listed = "; ".join(", ".join(names[n] for n in some) for some in groups)
        notes.append(
            f"These sets of models never met ({listed}): ratings compare within a set "
            "only, each set is put around the mean."
        )
    if not all(_reach(wins[np.ix_(some, some)] > 0).all() for some in groups):
        notes.append(
            "Some models won (or lost) every battle against the rest, so that their "
            f"distance has no limit in the data: the prior of {prior:g} battles sets "
            "it, and their intervals are too narrow on that side."
        )
    return tuple(notes)


def _newton(wins, prior, steps=100):
    """[N, M] maximisers of N problems; the damping makes every step one uphill.

    It is that of Sun & Tran-Dinh 2019 (arXiv:1703.04599), for logistic curvature, which
    changes at most e-fold while a gap changes by 1.
    """
    strengths = np.zeros(wins.shape[:2])
    for _ in range(steps):
        slope, curve = _derivatives(strengths, wins, prior)
        move = np.linalg.solve(curve, slope[..., None])[..., 0]
        left = (move * slope).sum(axis=-1)  # twice what is left to gain
        if (left < 1e-16 * (1 + wins.sum(axis=(1, 2)))).all():
            return strengths
        widest = 2 * np.abs(move).max(axis=-1, keepdims=True) + 1e-12
        strengths += np.log1p(widest) / widest * move
    raise ArithmeticError(
        f"strengths did not settle in {steps} steps: the counts may be extreme. Give a "
        "larger prior."
    )


def _derivatives(strengths, wins, prior):
    """Gradient [N, M] and negated Hessian [N, M, M] of the penalised log-likelihood."""
    # P(win) is (1 + tanh(gap / 2)) / 2, and its slope (1 - tanh(gap / 2)^2) / 4.
    pull = np.tanh((strengths[:, :, None] - strengths[:, None, :]) / 2)
    own, met = np.tanh(strengths / 2), wins + wins.swapaxes(1, 2)
    slope = (wins - met * (1 + pull) / 2).sum(axis=-1) - prior * own / 2
    curve = met * (1 - pull**2) / 4
    diagonal = curve.sum(axis=-1) + prior * (1 - own**2) / 4
    return slope, diagonal[..., None] * np.eye(strengths.shape[-1]) - curve
