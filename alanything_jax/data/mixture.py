"""Several data sets in one order, each with its share: a pure function of (seed, place).

With weights w (sum 1), source s shows its n-th group at the time (n + u_s) / w_s, where
u_s in [0, 1) is drawn from the seed, and groups follow one another by their times:

    weights 3/4, 1/4   ->   0 0 1 0 0 0 1 0 0 0 1 0 ...

So any stretch of the order holds its sources in their shares, to within one or two groups,
and which groups it holds is found without walking there. Each source goes through its own
epochs, each a permutation of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np


def check(weights: Sequence[float], sources: int) -> None:
    """Raises ValueError: not one positive, finite weight for each source."""
    if len(weights) != sources or not all(0 < w < math.inf for w in weights):
        raise ValueError(
            f"weights {tuple(weights)} for {sources} data sets: give each one a positive "
            "number. They need not sum to 1."
        )


@functools.lru_cache(maxsize=32)
def permutation(seed: int, epoch: int, size: int, source: int = 0) -> np.ndarray:
    """The order [size] of one epoch over a source."""
    own = (source,) if source else ()
    return np.random.default_rng([seed, epoch, *own]).permutation(size)


def members(
    seed: int, step: int, per_step: int, sizes: Sequence[int], weights: Sequence[float]
) -> list[tuple[int, int]]:
    """(source, index in it) of the groups that step number `step` (from 0) trains on.

    Args:
      sizes: groups of each source. weights: their shares, in any unit.

    Raises ValueError: see `check`, or a source is empty.
    """
    check(weights, len(sizes))
    if not all(sizes):
        raise ValueError(
            f"a mixture of data sets of {list(sizes)} groups: one is empty."
        )
    return [
        (s, int(permutation(seed, n // sizes[s], sizes[s], s)[n % sizes[s]]))
        for s, n in shown(seed, step, per_step, weights)
    ]


def shown(
    seed: int, step: int, per_step: int, weights: Sequence[float]
) -> list[tuple[int, int]]:
    """(source, n) of the groups of step number `step`: each the n-th that it shows."""
    share = np.array(weights, np.float64) / np.sum(weights)
    phase = np.random.default_rng([seed, len(weights), 0x3217]).random(len(weights))
    first, last = step * per_step, (step + 1) * per_step
    # At time t some t groups were shown, up to one of each source more or less.
    slack = len(weights) + 1
    begin = [_shown(first - slack, w, u) for w, u in zip(share, phase, strict=True)]
    end = [_shown(last + slack, w, u) for w, u in zip(share, phase, strict=True)]
    around = sorted(
        ((n + phase[s]) / share[s], s, n)
        for s in range(len(weights))
        for n in range(begin[s], end[s])
    )
    skip = first - sum(begin)
    return [(s, n) for _, s, n in around[skip : skip + per_step]]


def _shown(time: float, share: float, phase: float) -> int:
    """How many groups of a source have times below `time`, exactly as they are compared."""
    n = max(0, math.ceil(time * share - phase) - 1)
    while (n + phase) / share < time:
        n += 1
    return n
