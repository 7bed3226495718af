"""Held-out numbers: the algorithm's metrics, and what it says of every single pair."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from alanything_jax.sharding import pjit
from alanything_jax.training import parts as compiled
from alanything_jax.training import step
from alanything_jax.training.prepare import Prepared


@dataclasses.dataclass(frozen=True)
class Responses:
    """Per held-out group and response, [groups, K], NaN where absent.

    Attributes:
      values: summed log-prob, or reward.
      tokens: scored tokens.
    """

    values: np.ndarray
    tokens: np.ndarray


def evaluate(
    prepared: Prepared, parts: compiled.Compiled, trainable: step.Flat
) -> dict[str, float]:
    """Loss and metrics over all held-out groups, as `heldout/<name>`."""
    return measure(prepared, parts, trainable)[0]


def measure(
    prepared: Prepared, parts: compiled.Compiled, trainable: step.Flat
) -> tuple[dict[str, float], Responses]:
    """One pass over the held-out groups: metrics, and every response's number."""
    source = prepared.heldout
    params = prepared.frozen | trainable
    totals: dict[str, np.ndarray] = {}
    shape = (len(source.groups), source.layout.responses)
    values, tokens = np.full(shape, np.nan), np.full(shape, np.nan)
    for number in range(source.num_steps()):
        data = source[number]
        batches, counts = compiled.place(parts, prepared, data.microbatches)
        fixed = [parts.frozen(params, batch) for batch in batches]
        batches = compiled.annotate(parts, batches, fixed)
        weight = len(data.ids)
        for batch, outputs, placed in zip(batches, fixed, data.places, strict=True):
            sums, value, token = parts.measure(params, batch, outputs, counts)
            value, token = pjit.fetch(value), pjit.fetch(token)
            for name, mean in sums.items():
                pair = (mean.total * weight, weight) if name == "loss" else mean
                totals[name] = totals.get(name, 0) + np.array([float(x) for x in pair])
            table = np.asarray(batch.table)
            for group, slot in placed.items():
                row = number * source.groups_per_step + group
                here = table[slot] >= 0
                values[row, here] = value[table[slot][here]]
                tokens[row, here] = token[table[slot][here]]
    loss = totals.pop("loss")
    means = {n: float(t / c) for n, (t, c) in sorted(totals.items()) if c > 0}
    # Every microbatch of a step added the step's weight; what counts is groups.
    means = {"loss": float(loss[0] / len(source.groups))} | means
    return {f"heldout/{name}": v for name, v in means.items()}, Responses(
        values, tokens
    )


def of_reference(prepared: Prepared) -> Responses | None:
    """The base model's numbers where its log-probs are cached with the data, else None."""
    if not prepared.heldout.token_numbers:
        return None
    (cached,) = prepared.heldout.token_numbers.values()
    groups = prepared.heldout.groups
    shape = (len(groups), prepared.heldout.layout.responses)
    values, tokens = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, (group, logps) in enumerate(zip(groups, cached, strict=True)):
        for n, (branch, some) in enumerate(zip(group.branches, logps, strict=True)):
            values[row, n] = np.sum(some[branch.scored], dtype=np.float64)
            tokens[row, n] = branch.scored.sum()
    return Responses(values, tokens)


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of successes with its 95% Wilson interval."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """hits / of."""
        return self.hits / self.of if self.of else 0.0

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.hits}/{self.of})"


def wilson(hits: int, of: int, z: float = 1.959964) -> Share:
    """Wilson's score interval for a share (Wilson 1927); [0, 1] when `of` is 0."""
    if of == 0:
        return Share(0, 0, 0.0, 1.0)
    share, square = hits / of, z * z / of
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / of + square / (4 * of)) / (1 + square)
    return Share(hits, of, max(0.0, centre - half), min(1.0, centre + half))


def accuracy(values: np.ndarray) -> Share:
    """How often the chosen response (column 0) beats each other one of its group."""
    others = values[:, 1:]
    there = ~np.isnan(others) & ~np.isnan(values[:, :1])
    wins = there & (values[:, :1] > others)
    return wilson(int(wins.sum()), int(there.sum()))


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided exact p-value that two paired 0/1 outcomes have the same share.

    McNemar 1947: only the pairs that changed speak; under no change each went either
    way with probability one half.
    """
    gained = int((~before & after).sum())
    lost = int((before & ~after).sum())
    changed = gained + lost
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
