"""Ratings from pairwise battles: Bradley-Terry strengths, with ties and intervals.

Model i beats model j with odds exp(s_i - s_j) (Bradley & Terry 1952); strengths are
fitted by penalised maximum likelihood. A tie is half a win for each side, or has a
probability of its own that grows as the two come close (Davidson 1970):

    P(i beats j) = e^(d/2) / Z,   P(tie) = v / Z,   Z = e^(d/2) + e^(-d/2) + v,  d = s_i - s_j

Likelihood alone has a finite answer only where every model is linked to every other by
a chain of wins (Ford 1957; Hunter 2004). So each model also plays `prior` battles, half
of them won, against an imagined opponent of average strength: one battle among hundreds
moves nothing, and a model that won everything, or was never compared, gets a defined
rating. `Ratings.notes` says where that prior decided.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

MEAN, SCALE = 1000.0, 400.0 / math.log(10.0)
TieModel = Literal["half", "davidson"]


@dataclasses.dataclass(frozen=True)
class Strengths:
    """Fitted strengths, [..., M] natural-log units with mean zero over models.

    Attributes:
      tie: [...] Davidson's v: between equals a tie has odds v/2; 0 where ties are halves.
    """

    values: np.ndarray
    tie: np.ndarray

    @property
    def elo(self) -> np.ndarray:
        """[..., M] on the scale where 400 points are odds of ten to one, mean 1000."""
        return MEAN + SCALE * self.values


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings of M models with percentile intervals over prompts.

    Attributes:
      elo, low, high: [M]; low and high are NaN with fewer than two prompts.
      above: [M, M] share of resamples that rate the row's model above the column's (an
        equal rating counts half): what says whether two models differ, since intervals
        of two models that overlap do not.
      tie: Davidson's v, 0 where ties are halves.
      notes: what a reader must know, in sentences; empty where nothing is special.
    """

    elo: np.ndarray
    low: np.ndarray
    high: np.ndarray
    above: np.ndarray
    tie: float
    notes: tuple[str, ...]


def fit(
    wins: np.ndarray,
    ties: np.ndarray | None = None,
    *,
    tie_model: TieModel = "half",
    prior: float = 1.0,
) -> Strengths:
    """Maximum-likelihood strengths by Newton's method; the likelihood is concave.

    Args:
      wins: [..., M, M], how often the row's model beat the column's.
      ties: the same shape, symmetric; None = no ties.
      prior: imagined battles of each model against an average one; 0 = likelihood alone.

    Raises:
      ValueError: counts that are no counts; or no finite answer exists and `prior` is 0.
    """
    wins, ties = _counts(wins, ties)
    if prior < 0:
        raise ValueError(f"prior is {prior}: give 0 (none) or a number of battles.")
    models = wins.shape[-1]
    flat = wins.reshape(-1, models, models), ties.reshape(-1, models, models)
    davidson = tie_model == "davidson"
    if prior == 0:
        _check_finite(*flat, davidson)
    theta = _newton(*flat, prior, davidson)
    values = theta[:, :-1] - theta[:, :-1].mean(axis=-1, keepdims=True)
    tie = np.exp(theta[:, -1]) if davidson else np.zeros(len(theta))
    return Strengths(values.reshape(wins.shape[:-1]), tie.reshape(wins.shape[:-2]))


def rate(
    wins: np.ndarray,
    ties: np.ndarray | None = None,
    *,
    names: Sequence[str] = (),
    tie_model: TieModel = "half",
    prior: float = 1.0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Ratings:
    """Ratings, with intervals from resampling whole prompts (percentile bootstrap).

    All battles of a prompt are resampled together: they share its difficulty.

    Args:
      wins, ties: [P, M, M] per prompt, as `fit` takes them.
      names: for the notes; default "model 0", ...

    Raises ValueError: no battle at all, or counts that are no counts.
    """
    wins, ties = _counts(wins, ties)
    if wins.ndim != 3:
        raise ValueError(f"wins has shape {wins.shape}, not [prompts, models, models].")
    total = wins.sum(axis=0), ties.sum(axis=0)
    if not total[0].sum() + total[1].sum():
        raise ValueError("no battle was decided or tied: there is nothing to rate.")
    options = {"tie_model": tie_model, "prior": prior}
    fitted = fit(*total, **options)
    prompts, models = wins.shape[:2]
    names = list(names) or [f"model {n}" for n in range(models)]
    notes = _notes(*total, names, prior)
    low = high = np.full(models, np.nan)
    above = np.full((models, models), np.nan)
    if prompts < 2:
        notes += ("One prompt gives no interval.",)
    else:
        drawn = _resample(wins, ties, resamples, np.random.default_rng(seed))
        elo = fit(*drawn, **options).elo
        tail = (1 - level) / 2
        low, high = np.quantile(elo, [tail, 1 - tail], axis=0)
        gap = elo[:, :, None] - elo[:, None, :]
        same = np.abs(gap) < 1e-6
        above = ((gap > 0) & ~same).mean(axis=0) + same.mean(axis=0) / 2
    return Ratings(fitted.elo, low, high, above, float(fitted.tie), notes)


def parts(games: np.ndarray) -> list[list[int]]:
    """Models [M] split into sets that have met, directly or through others.

    Args:
      games: [M, M] battles between each two, either way round.
    """
    met = _reach((games + games.T) > 0)
    return [row.nonzero()[0].tolist() for n, row in enumerate(met) if row.argmax() == n]


def _counts(wins, ties):
    wins = np.asarray(wins, float)
    ties = np.zeros_like(wins) if ties is None else np.asarray(ties, float)
    square = wins.ndim >= 2 and wins.shape[-1] == wins.shape[-2]
    if not square or wins.shape != ties.shape:
        shapes = f"wins {wins.shape} and ties {ties.shape}"
        raise ValueError(f"{shapes} must both be [..., models, models].")
    both = np.stack([wins, ties])
    if not np.isfinite(both).all() or (both < 0).any():
        raise ValueError("wins and ties must be finite and not negative.")
    if np.diagonal(both, axis1=-2, axis2=-1).any():
        raise ValueError("a model met itself: the diagonals must be 0.")
    if not np.array_equal(ties, np.swapaxes(ties, -1, -2)):
        raise ValueError("ties must be symmetric: a tie of i and j is one of j and i.")
    return wins, ties


def _reach(edges):
    """[M, M] bool: there is a path along `edges`; every model reaches itself."""
    path = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges).bit_length()):
        path = (path.astype(int) @ path.astype(int)) > 0
    return path


def _check_finite(wins, ties, davidson):
    for some, tied in zip(wins, ties, strict=True):
        if not _reach(some + tied > 0).all():
            raise ValueError(
                "not every two models are linked by a chain of wins or ties, so "
                "likelihood alone has no finite answer. Give a prior above 0."
            )
        if davidson and not (tied.any() and some.any()):
            raise ValueError(
                "Davidson's model needs both wins and ties. Give a prior above 0, or "
                "count ties as halves."
            )


def _notes(wins, ties, names, prior):
    notes = []
    groups = parts(wins + ties)
    if len(groups) > 1:
        listed = "; ".join(", ".join(names[n] for n in some) for some in groups)
        notes.append(
            f"These sets of models never met ({listed}): ratings compare within a set "
            "only, each set is put around the mean."
        )
    if not all(_reach((wins + ties)[np.ix_(some, some)] > 0).all() for some in groups):
        notes.append(
            "Some models won (or lost) every battle against the rest, so that their "
            f"distance has no limit in the data: the prior of {prior:g} battles sets "
            "it, and their intervals are too narrow on that side."
        )
    return tuple(notes)


def _resample(wins, ties, resamples, random):
    """Counts [resamples, M, M] of prompts drawn with replacement."""
    prompts = len(wins)
    drawn = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return [np.tensordot(drawn, x, axes=1) for x in (wins, ties)]


def _newton(wins, ties, prior, davidson, steps=100):
    """[N, M + 1] maximisers (last: log v), all N problems at once, steps halved as needed."""
    theta = np.zeros((len(wins), wins.shape[-1] + 1))
    tolerance = 1e-16 * (1 + (wins + ties / 2).sum(axis=(1, 2)))
    with jax.enable_x64(True):
        value, slope, curve = _derivatives(theta, wins, ties, prior, davidson)
        for _ in range(steps):
            move = np.linalg.solve(-curve, slope[..., None])[..., 0]
            gain = (move * slope).sum(axis=-1)  # twice what is left to gain
            if (gain < tolerance).all():
                return theta
            size = np.where(gain < tolerance, 0.0, 1.0)
            for _ in range(60):
                tried = theta + size[:, None] * move
                new = _derivatives(tried, wins, ties, prior, davidson)
                worse = new[0] < value - 1e-9 * (1 + np.abs(value))
                if not worse.any():
                    break
                size = np.where(worse, size / 2, size)
            theta, (value, slope, curve) = tried, new
    raise ArithmeticError(
        f"strengths did not settle in {steps} steps: the counts may be extreme. Give a "
        "larger prior."
    )


def _derivatives(theta, wins, ties, prior, davidson):
    """The log-likelihood [N], its gradient [N, M + 1] and its Hessian."""
    return jax.device_get(_compiled(theta, wins, ties, float(prior), davidson))


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
def _compiled(theta, *data):
    value, slope = jax.value_and_grad(_log_likelihood)(theta, *data)
    return value, slope, jax.hessian(_log_likelihood)(theta, *data)


def _log_likelihood(theta, wins, ties, prior, davidson):
    """Penalised, of one problem; every tie stands in `ties` twice, hence its half."""
    s, log_v = theta[:-1], theta[-1]
    gap = s[:, None] - s[None, :]
    total = jnp.logaddexp(gap / 2, -gap / 2)
    total = jnp.logaddexp(total, log_v) if davidson else total
    value = (wins * (gap / 2 - total)).sum() - (ties * total).sum() / 2
    value -= prior * jnp.logaddexp(s / 2, -s / 2).sum()
    # Without a prior the mean is free: hold it, which moves no difference.
    value -= jnp.where(prior == 0, jnp.square(s.sum()) / 2, 0)
    if not davidson:
        return value - jnp.square(log_v) / 2
    # Ties get a prior too: `prior` battles between equals, a third of them tied.
    value += ties.sum() / 2 * log_v
    return value + prior * (log_v / 3 - jnp.logaddexp(math.log(2.0), log_v))
