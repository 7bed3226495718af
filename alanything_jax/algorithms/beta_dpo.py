"""beta-DPO: a step of clear pairs is held closer to the reference.

Wu et al. 2024 (arXiv:2407.08639), equations 6 and 7:

    M_i = beta_0 h_i,   beta = (1 + alpha (mean of M_i - M_0)) beta_0,   L = DPO's with beta

h is DPO's; beta, without gradient, is one number for all pairs of a step. M_0 is a fixed
threshold here, where the paper keeps its moving average over steps; no pair is left out.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import CURRENT, current_ratios
from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class BetaDPO:
    """Pairs against a reference, under a beta of the step's own.

    Attributes:
      beta: beta_0. alpha: how far beta follows the step. threshold: M_0.
      smallest: beta is at least this share of beta_0.
    """

    beta: float = 0.1
    alpha: float = 0.6
    threshold: float = 0.0
    smallest: float = 0.01

    roles: ClassVar = {"policy": "logps", "reference": "logps", CURRENT: "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ()

    def annotate(self, batches, outputs):
        """The reference's sums [M, R], and the step's beta for each microbatch."""
        ratio, fixed = current_ratios(batches, outputs)
        chosen, rejected, mask = jax.vmap(masked.pairs)(ratio, batches.table)
        gap = masked.divide(*masked.mean(self.beta * (chosen - rejected), mask))
        share = jnp.maximum(1 + self.alpha * (gap - self.threshold), self.smallest)
        return {"reference_sum": fixed, "beta": jnp.full(len(fixed), share * self.beta)}

    def loss(self, batch, outputs):
        """Term `beta_dpo` per pair; rewards are beta_0 * (log p - log p_ref)."""
        sums = masked.response_sum(outputs["policy"].logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        chosen, rejected, mask = masked.pairs(ratio, batch.table)
        beta = jnp.broadcast_to(batch.numbers["beta"], mask.shape)
        losses = -jax.nn.log_sigmoid(beta * (chosen - rejected))
        terms = {"beta_dpo": masked.Term(1.0, *masked.mean(losses, mask))}
        metrics = masked.pair_metrics(self.beta * ratio, batch.table)
        return terms, metrics | {"beta": masked.mean(beta, mask)}
