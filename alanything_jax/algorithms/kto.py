"""Kahneman-Tversky optimization: single answers, each desirable or not.

Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8:

    r  = log p(y|x) - log p_ref(y|x)
    z0 = max(0, mean over the step of r(x, y')),   y' another prompt's answer
    L  = w_D (1 - sigmoid(beta (r - z0)))    desirable
         w_U (1 - sigmoid(beta (z0 - r)))    undesirable

A group is the labelled response, then the mismatched y' under the same prompt
(`Data(view="mismatched")`), which is never in the loss. z0 has no gradient; it is of all
groups of the step, where TRL takes those of a microbatch.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import CURRENT, current_ratios
from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class KTO:
    """Labelled answers against a reference.

    Attributes:
      beta: how soon a gain or loss saturates.
      desirable_weight, undesirable_weight: the paper's lambdas; of rare labels, higher.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    roles: ClassVar = {"policy": "logps", "reference": "logps", CURRENT: "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 2
    numbers: ClassVar = ("label",)

    def annotate(self, batches, outputs):
        """The reference's sums [M, R], and the step's baseline z0 for each microbatch."""
        if batches.table.shape[-1] < 2:
            raise ValueError(
                "KTO needs a mismatched response beside each labelled one, and no group "
                'has any: set data.view="mismatched", and give several prompts.'
            )
        ratio, fixed = current_ratios(batches, outputs)
        other = jax.vmap(masked.by_group)(ratio, batches.table)[:, :, 1]
        kl = masked.divide(*masked.mean(other, batches.table[:, :, 1] >= 0))
        baseline = jnp.full(len(fixed), jnp.maximum(kl, 0.0))
        return {"reference_sum": fixed, "baseline": baseline}

    def loss(self, batch, outputs):
        """Term `kto` per labelled response."""
        sums = masked.response_sum(outputs["policy"].logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        ratio = masked.by_group(ratio, batch.table)[:, 0]
        mask, baseline = batch.table[:, 0] >= 0, batch.numbers["baseline"]
        good = batch.numbers["label"][:, 0] > 0.5
        gain = self.beta * (ratio - baseline)
        weight = jnp.where(good, self.desirable_weight, self.undesirable_weight)
        losses = weight * jax.nn.sigmoid(jnp.where(good, -gain, gain))
        metrics = {
            "reward_desirable": masked.mean(self.beta * ratio, mask & good),
            "reward_undesirable": masked.mean(self.beta * ratio, mask & ~good),
            "baseline": masked.mean(jnp.broadcast_to(baseline, mask.shape), mask),
        }
        return {"kto": masked.Term(1.0, *masked.mean(losses, mask))}, metrics
