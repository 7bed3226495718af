"""REINFORCE++: no group and no value model, a baseline over the whole step.

Hu et al. 2025 (arXiv:2501.03262):

    r_it = [t is the last] r_i - kl_weight (log p_old(y_it) - log p_ref(y_it))
    G_it = sum of r_it' over t' >= t
    A    = (G - mean(G)) / std(G)               over all tokens of the step
    L    = - mean_it min(s_it A_it, clip(s_it) A_it)

A token is made likelier if what came of it is above what is usual in this step.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import rollout_roles
from alanything_jax.ops import masked, policy


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """Returns brought to mean 0 and variance 1 over the step.

    Attributes:
      kl_weight: of the distance to the reference, token by token in the reward; with 0
        there is no reference.
      clip_low, clip_high: how far below and above 1 a ratio counts.
      average, max_tokens, sampler_most: as in `grpo.GRPO`.
    """

    kl_weight: float = 0.01
    clip_low: float = 0.2
    clip_high: float = 0.2
    average: policy.Average = "token"
    max_tokens: int = 256
    sampler_most: float = 2.0

    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ("reward",)

    @property
    def roles(self):
        """The reference is read only where its distance counts."""
        return rollout_roles(self.kl_weight)

    def annotate(self, batches, outputs):
        """Advantages [M, B, T], and which tokens have one."""
        far = jnp.zeros(batches.tokens.shape)
        if self.kl_weight:
            far = outputs["old"].logps - outputs["reference"].logps
        rewards, kept = jax.vmap(policy.at_ends)(batches.numbers["reward"], batches)
        rewards = rewards - self.kl_weight * far
        zeros = jnp.zeros_like(rewards)

        def returns(rewards, zeros, batch):
            return policy.backwards(rewards, zeros, batch, 1.0, 1.0)

        advantage = policy.whiten(jax.vmap(returns)(rewards, zeros, batches), kept)
        return {"advantage": advantage, "kept": kept.astype(jnp.float32)}

    def loss(self, batch, outputs):
        """Term `policy` per token."""
        logps, old = outputs["policy"].logps, outputs["old"].logps
        fixed = policy.reference(outputs)
        bounds = (self.clip_low, self.clip_high, self.sampler_most)
        losses, cut, weight = policy.token_losses(batch, outputs, *bounds)
        mask = batch.numbers["kept"] > 0
        how = (mask, batch, self.average, self.max_tokens)
        terms = {"policy": masked.Term(1.0, *policy.average(losses, *how))}
        return terms, policy.metrics(batch, logps, old, weight, cut, mask, fixed)
