"""Proximal policy optimization of token-level advantages, with a value model.

Schulman et al. 2017 (arXiv:1707.06347), equation 7, as Ouyang et al. 2022
(arXiv:2203.02155) use it on language models:

    r_t = [t is the last] r - kl_weight (log p_old(y_t) - log p_ref(y_t))
    A_t = generalised advantage of r under the old values V (arXiv:1506.02438)
    L   = - mean min(s_t A_t, clip(s_t) A_t) + value_weight * value loss
    value loss = mean of max[(V - R)^2, (V_old + clip(V - V_old) - R)^2] / 2,  R = A + V_old

A token is made likelier if what came of it beats what the value model foresaw; A is
brought to mean 0 and variance 1 over the step.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import rollout_roles
from alanything_jax.ops import masked, policy


@dataclasses.dataclass(frozen=True)
class PPO:
    """An actor and a value model.

    Attributes:
      clip_low, clip_high: how far below and above 1 a ratio counts.
      value_clip: how far a value may go from the old one. value_weight: of its loss.
      discount, trace: gamma and lambda of the advantages.
      kl_weight: of the distance to the reference; with 0 there is no reference.
      kl_in: the distance is a part of each token's "reward", or a term of the "loss".
      ptx_weight: of the likelihood of the answers in `rollout.ptx`.
      average, max_tokens, sampler_most: as in `grpo.GRPO`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    discount: float = 1.0
    trace: float = 0.95
    kl_weight: float = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    ptx_weight: float = 0.0
    average: policy.Average = "token"
    max_tokens: int = 256
    sampler_most: float = 2.0

    trains: ClassVar = ("policy", "value")
    couples: ClassVar = False
    min_responses: ClassVar = 1

    @property
    def roles(self):
        """The reference is read only where its distance counts."""
        values = {"value": "scores", "old_value": "scores"}
        return rollout_roles(self.kl_weight, **values)

    @property
    def numbers(self):
        """`ptx` is 1 for groups that are only imitated."""
        return ("reward", "ptx") if self.ptx_weight else ("reward",)

    def annotate(self, batches, outputs):
        """Advantages and returns [M, B, T], and which tokens have them."""
        far = jnp.zeros(batches.tokens.shape)
        if self.kl_weight and self.kl_in == "reward":
            far = outputs["old"].logps - outputs["reference"].logps
        rewards, kept = jax.vmap(policy.at_ends)(batches.numbers["reward"], batches)
        old = outputs["old_value"].scores
        advantage = self.advantages(rewards - self.kl_weight * far, old, batches)
        return {
            "advantage": policy.whiten(advantage, kept),
            "returns": advantage + old,
            "kept": kept.astype(jnp.float32),
        }

    def advantages(self, rewards, values, batches):
        """[M, B, T]: generalised advantages of the rewards of tokens."""

        def one(rewards, values, batch):
            how = (self.discount, self.trace)
            return policy.backwards(rewards, values, batch, *how)

        return jax.vmap(one)(rewards, values, batches)

    def loss(self, batch, outputs):
        """Terms `policy`, `value`, and where they count `kl` and `ptx`."""
        logps, old = outputs["policy"].logps, outputs["old"].logps
        fixed = policy.reference(outputs)
        bounds = (self.clip_low, self.clip_high, self.sampler_most)
        losses, cut, weight = policy.token_losses(batch, outputs, *bounds)
        mask = batch.numbers["kept"] > 0
        how = (mask, batch, self.average, self.max_tokens)
        returns, seen = batch.numbers["returns"], outputs["old_value"].scores
        values, missed = self.value_loss(outputs["value"].scores, seen, returns, batch)
        terms = {
            "policy": masked.Term(1.0, *policy.average(losses, *how)),
            "value": masked.Term(self.value_weight, *masked.mean(missed, mask)),
        }
        if self.kl_weight and self.kl_in == "loss":
            distance = policy.k3(logps, fixed)
            terms["kl"] = masked.Term(self.kl_weight, *policy.average(distance, *how))
        if self.ptx_weight:
            shown = jnp.broadcast_to(batch.numbers["ptx"][:, None], batch.table.shape)
            imitated = policy.of_tokens(shown.reshape(-1), batch) > 0
            terms["ptx"] = masked.Term(self.ptx_weight, *masked.mean(-logps, imitated))
        return terms, policy.metrics(batch, logps, old, weight, cut, mask, fixed) | {
            "value": masked.mean(values, mask),
            "returns": masked.mean(returns, mask),
        }

    def value_loss(self, scores, old, returns, batch):
        """Values of scored tokens [B, T], and half the larger squared miss of each."""
        values = policy.before(scores, batch)
        near = old + jnp.clip(values - old, -self.value_clip, self.value_clip)
        missed = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
        return values, 0.5 * missed
