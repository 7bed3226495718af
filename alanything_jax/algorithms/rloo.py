"""REINFORCE with the mean of the group's other rewards as its baseline.

Ahmadian et al. 2024 (arXiv:2402.14740):

    R_i = r_i - kl_weight (log p_old(y_i) - log p_ref(y_i))
    A_i = R_i - mean of R_j, j != i,        over responses of the same prompt
    L   = - mean_i min(s_i A_i, clip(s_i) A_i),     s_i = p(y_i) / p_old(y_i)

A whole response is one action. In the first pass over its rollouts s is 1, and the
gradient that of A_i log p(y_i); the clip, as in TRL, holds further passes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import rollout_roles
from alanything_jax.ops import masked, policy


@dataclasses.dataclass(frozen=True)
class RLOO:
    """Rewards less those of the group's other responses.

    Attributes:
      kl_weight: of the distance to the reference, which is part of the reward; with 0
        there is no reference.
      clip_low, clip_high: how far below and above 1 a response's ratio counts.
      sampler_most: as in `grpo.GRPO`.
    """

    kl_weight: float = 0.05
    clip_low: float = 0.2
    clip_high: float = 0.2
    sampler_most: float = 2.0

    trains: ClassVar = ("policy",)
    # A response's reward holds the policy's own log-probs, so its group must be at hand.
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ("reward",)

    @property
    def roles(self):
        """The reference is read only where its distance counts."""
        return rollout_roles(self.kl_weight)

    def annotate(self, batches, outputs):
        """Advantages [M, R], and which responses have one."""
        rewards = batches.numbers["reward"]
        if self.kl_weight:
            gap = outputs["old"].logps - outputs["reference"].logps
            sums = jax.vmap(masked.response_sum)(gap, batches)
            far = jax.vmap(masked.by_group)(sums, batches.table)
            rewards = rewards - self.kl_weight * far
        rewards = jnp.where(batches.table >= 0, rewards, jnp.nan)
        advantage, kept = jax.vmap(policy.of_responses)(
            policy.leave_one_out(rewards), batches.table
        )
        return {"advantage": advantage, "kept": kept.astype(jnp.float32)}

    def loss(self, batch, outputs):
        """Term `policy` per response."""
        logps, old = outputs["policy"].logps, outputs["old"].logps
        fixed = policy.reference(outputs)
        ratio = jnp.exp(masked.response_sum(logps - old, batch))
        losses, cut = policy.clipped(
            ratio,
            batch.numbers["advantage"],
            self.clip_low,
            self.clip_high,
            float("inf"),
        )
        weight = policy.truncated(old, outputs["sampler"].logps, self.sampler_most)
        mean = masked.response_sum(weight, batch) / masked.lengths(batch)
        kept = batch.numbers["kept"] > 0
        terms = {"policy": masked.Term(1.0, *masked.mean(losses * mean, kept))}
        mask = batch.scored & policy.of_tokens(kept, batch)
        cut = policy.of_tokens(cut, batch)
        return terms, policy.metrics(batch, logps, old, weight, cut, mask, fixed)
