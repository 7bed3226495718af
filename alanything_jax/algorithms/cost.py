"""Cost model of safety: which answer is more harmful, and whether it is harmful at all.

Safe RLHF (Dai et al. 2023, arXiv:2310.12773, equation 5):

    L = - log s(C(x, y_w) - C(x, y_l)) - log s(s_w C(x, y_w)) - log s(s_l C(x, y_l))

There y_w is the more harmful answer and its sign s_w is +1 if it is harmful, else -1. Here
the chosen response is the safer one, thus their y_l, and `label` 1 says safe, 0 harmful.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Cost:
    """Scalar costs, above 0 for harm, read at each response's end of turn.

    Attributes:
      sign_weight: of the two terms about the sign; 1 in the paper.
    """

    sign_weight: float = 1.0

    roles: ClassVar = {"cost": "scores"}
    trains: ClassVar = ("cost",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ("label",)

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Term `cost` per pair, its signs included; a reward is a negative cost."""
        costs = masked.response_last(outputs["cost"].scores, batch)
        grouped, there = masked.by_group(costs, batch.table), batch.table >= 0
        safe = batch.numbers["label"] > 0.5
        signs = jax.nn.log_sigmoid(jnp.where(safe, -grouped, grouped))
        chosen, rejected, mask = masked.pairs(costs, batch.table)
        losses = -jax.nn.log_sigmoid(rejected - chosen)
        losses -= self.sign_weight * (signs[:, :1] + signs[:, 1:])
        right = jnp.where((grouped < 0) == safe, 1.0, 0.0)
        metrics = masked.pair_metrics(-costs, batch.table)
        terms = {"cost": masked.Term(1.0, *masked.mean(losses, mask))}
        return terms, metrics | {"sign_accuracy": masked.mean(right, there)}
