"""Binary classifier optimization: answers marked up or down, with a shift of rewards.

Jung et al. 2024 (arXiv:2404.04656), equations 9 to 11:

    r = beta (log p(y|x) - log p_ref(y|x)),   d = (mean of r of D+  +  mean of r of D-) / 2
    L = - log sigmoid(r - d)  on D+,   - log sigmoid(-(r - d))  on D-

The reward is a classifier's logit of "desirable"; d, without gradient, puts its threshold
between the two kinds. The means are of the step, where authors and TRL keep a moving
average over steps. Density ratios of the two kinds' prompts are not modelled.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import CURRENT, current_ratios
from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class BCO:
    """Labelled answers against a reference; `beta` is the pull to it."""

    beta: float = 0.1

    roles: ClassVar = {"policy": "logps", "reference": "logps", CURRENT: "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ("label",)

    def annotate(self, batches, outputs):
        """The reference's sums [M, R], and the step's shift d for each microbatch."""
        ratio, fixed = current_ratios(batches, outputs)
        rewards = self.beta * jax.vmap(masked.by_group)(ratio, batches.table)
        good, there = batches.numbers["label"] > 0.5, batches.table >= 0
        kinds = [masked.mean(rewards, there & kind) for kind in (good, ~good)]
        found = sum(jnp.where(kind.count > 0, 1.0, 0.0) for kind in kinds)
        shift = masked.divide(sum(masked.divide(*kind) for kind in kinds), found)
        return {"reference_sum": fixed, "shift": jnp.full(len(fixed), shift)}

    def loss(self, batch, outputs):
        """Term `bco` per labelled response."""
        sums = masked.response_sum(outputs["policy"].logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        rewards = self.beta * masked.by_group(ratio, batch.table)
        mask, good = batch.table >= 0, batch.numbers["label"] > 0.5
        logit = rewards - batch.numbers["shift"]
        losses = -jax.nn.log_sigmoid(jnp.where(good, logit, -logit))
        metrics = {
            "reward_desirable": masked.mean(rewards, mask & good),
            "reward_undesirable": masked.mean(rewards, mask & ~good),
            "accuracy": masked.mean(jnp.where((logit > 0) == good, 1.0, 0.0), mask),
        }
        return {"bco": masked.Term(1.0, *masked.mean(losses, mask))}, metrics
