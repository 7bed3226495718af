"""Reward model from rankings of K responses (Plackett 1975, Luce 1959).

Zhu et al. 2023 (arXiv:2301.11270, equation 5):

    L = - sum_i log( exp r_i / sum of exp r_j over the j not ranked above i )

The best is chosen among all, the next among the rest, and so on: K = 2 is Bradley-Terry.
The order is the data's number `rating`, higher is better; of a tie, each member is chosen
among all that are no better (Breslow 1974). The mean is over groups.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Scalar scores read at each response's end of turn; no hyperparameters."""

    roles: ClassVar = {"reward": "scores"}
    trains: ClassVar = ("reward",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ("rating",)

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Term `plackett_luce` per group; metrics are of pairs, the better one chosen."""
        rewards = masked.response_last(outputs["reward"].scores, batch)
        rewards = masked.by_group(rewards, batch.table)
        rating, there = batch.numbers["rating"], batch.table >= 0
        both = there[:, :, None] & there[:, None, :]
        rest = both & (rating[:, :, None] >= rating[:, None, :])
        among = jnp.where(rest, rewards[:, None, :], -jnp.inf)
        among = jax.nn.logsumexp(jnp.where(there[:, :, None], among, 0.0), axis=2)
        losses = jnp.sum(jnp.where(there, among - rewards, 0.0), axis=1)
        better = both & (rating[:, :, None] > rating[:, None, :])
        gap = rewards[:, :, None] - rewards[:, None, :]
        mask = jnp.sum(there, axis=1) > 1
        return {"plackett_luce": masked.Term(1.0, *masked.mean(losses, mask))}, {
            "reward_accuracy": masked.mean(jnp.where(gap > 0, 1.0, 0.0), better),
            "reward_margin": masked.mean(gap, better),
            "reward": masked.mean(rewards, there),
        }
