"""Group relative policy optimization, and what came of it.

Shao et al. 2024 (arXiv:2402.03300), equations 3 and 4:

    A_i  = (r_i - mean(r)) / std(r)             over the responses of one prompt
    s_it = p(y_it) / p_old(y_it)
    L    = - mean_i mean_t [min(s A, clip(s, 1 - low, 1 + high) A) - kl_weight k3(p, ref)]

A response is made likelier that beats its prompt's other ones. Variants are arguments:

    Dr.GRPO (arXiv:2503.20783)  scale="none", average="constant"
    DAPO (arXiv:2503.14476)     clip_high=0.28, average="token", kl_weight=0; what it does
                                to the rollouts is in `Rollout` and `rewards.rules`
    GSPO (arXiv:2507.18071)     importance="response", clip_low=3e-4, clip_high=4e-4
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import rollout_roles
from alanything_jax.ops import masked, policy


@dataclasses.dataclass(frozen=True)
class GRPO:
    """Rewards compared within a group.

    Attributes:
      clip_low, clip_high: how far below and above 1 a ratio counts.
      ratio_most: bound of the ratio where the advantage is negative (dual clip); inf: none.
      kl_weight: of the distance to the reference; with 0 there is no reference.
      scale: divide by the standard deviation of the "group", of the "step", or by "none".
      average: "response": each response counts alike; "token": each token does;
        "constant": sums over a response are divided by `max_tokens`.
      importance: ratios of each "token", or of a "response": its tokens' geometric mean.
      max_tokens: the constant; only read there.
      sampler_most: bound of p_old / p_sampler, the weight of a token that other code has
        sampled.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_most: float = float("inf")
    kl_weight: float = 0.0
    scale: Literal["group", "step", "none"] = "group"
    average: policy.Average = "response"
    importance: Literal["token", "response"] = "token"
    max_tokens: int = 256
    sampler_most: float = 2.0

    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 2
    numbers: ClassVar = ("reward",)

    @property
    def roles(self):
        """The reference is read only where its distance counts."""
        return rollout_roles(self.kl_weight)

    def annotate(self, batches, outputs):
        """Advantages [M, R], and which responses have one."""
        del outputs
        rewards, table = batches.numbers["reward"], batches.table
        _, mean, std = policy.group_moments(rewards)
        gap = rewards - mean
        if self.scale == "group":
            gap = gap / (std + 1e-4)
        if self.scale == "step":
            present = table >= 0
            every = jnp.where(present, rewards, jnp.nan).reshape(-1)
            gap = gap / (policy.group_moments(every)[2] + 1e-4)
        advantage, kept = jax.vmap(policy.of_responses)(gap, table)
        return {"advantage": advantage, "kept": kept.astype(jnp.float32)}

    def loss(self, batch, outputs):
        """Terms `policy` and `kl`."""
        logps, old = outputs["policy"].logps, outputs["old"].logps
        fixed = policy.reference(outputs)
        gap = logps - old
        if self.importance == "response":
            mean = masked.response_sum(gap, batch) / masked.lengths(batch)
            gap = policy.of_tokens(mean, batch)
        advantage = policy.of_tokens(batch.numbers["advantage"], batch)
        losses, cut = policy.clipped(
            jnp.exp(gap), advantage, self.clip_low, self.clip_high, self.ratio_most
        )
        weight = policy.truncated(old, outputs["sampler"].logps, self.sampler_most)
        mask = batch.scored & (policy.of_tokens(batch.numbers["kept"], batch) > 0)
        how = (mask, batch, self.average, self.max_tokens)
        terms = {
            "policy": masked.Term(1.0, *policy.average(losses * weight, *how)),
        }
        if self.kl_weight:
            distance = policy.k3(logps, fixed)
            terms["kl"] = masked.Term(self.kl_weight, *policy.average(distance, *how))
        return terms, policy.metrics(batch, logps, old, weight, cut, mask, fixed)
