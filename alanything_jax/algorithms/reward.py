"""Reward model from comparisons (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    L = - log sigmoid(r(x, y_w) - r(x, y_l) - m)  +  c * (r(x, y_w) + r(x, y_l))^2

The chosen answer should score above the rejected one, by the margin m that annotators
gave where they gave one (Llama 2, arXiv:2307.09288, eq. 2). The second term keeps the
scores centred on zero (Eisenstein et al. 2023, arXiv:2312.09244).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Reward:
    """Scalar scores read at each response's end of turn.

    Attributes:
      margin_scale: multiplies the data's margin (0 = margins are not used).
      centring: weight c of the centring term.
    """

    margin_scale: float = 0.0
    centring: float = 0.0

    roles: ClassVar = {"reward": "scores"}
    trains: ClassVar = ("reward",)
    couples: ClassVar = True
    min_responses: ClassVar = 2

    @property
    def numbers(self):
        """The data's margins, where they are used."""
        return ("margin",) if self.margin_scale else ()

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Terms `bradley_terry` and, if asked for, `centring`, per pair."""
        rewards = masked.response_last(outputs["reward"].scores, batch)
        chosen, rejected, mask = masked.pairs(rewards, batch.table)
        gap = chosen - rejected
        margin = 0.0
        if self.margin_scale:
            margin = self.margin_scale * batch.numbers["margin"][:, None]
        total, count = masked.mean(-jax.nn.log_sigmoid(gap - margin), mask)
        terms = {"bradley_terry": masked.Term(1.0, total, count)}
        if self.centring:
            total, count = masked.mean(jnp.square(chosen + rejected), mask)
            terms["centring"] = masked.Term(self.centring, total, count)
        return terms, masked.pair_metrics(rewards, batch.table)
