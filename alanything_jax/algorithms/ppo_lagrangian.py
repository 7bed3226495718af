"""PPO under a limit on cost: helpful while harmless.

Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), equation 31 and their code, which mixes
advantages where the paper mixes the two clipped losses:

    r_t, c_t: reward and cost at the end, less and plus kl_weight / 2 of the token's KL
    A   = (A_r - m A_c) / (1 + m),                               then whitened
    m  <- m exp(multiplier_rate m (mean cost - cost_limit)),      after each rollout

with a value model of the rewards and one of the costs. m grows while answers cost more
than the limit, and then cost counts more than reward.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.ppo import PPO
from alanything_jax.ops import masked, policy


@dataclasses.dataclass(frozen=True)
class PPOLagrangian:
    """Two value models and a multiplier.

    Attributes:
      ppo: everything that plain PPO has; its `kl_in` must be "reward", without ptx.
      cost_limit: mean cost of a response that is allowed (the paper's d, negated).
      multiplier, multiplier_rate, multiplier_most: first value, learning rate and bound
        of what weighs costs.
    """

    ppo: PPO = PPO()
    cost_limit: float = 0.0
    multiplier: float = 1.0
    multiplier_rate: float = 0.1
    multiplier_most: float = 20.0

    trains: ClassVar = ("policy", "value", "cost_value")
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ("reward", "cost", "multiplier")

    def __post_init__(self):
        if self.ppo.kl_in != "reward" or self.ppo.ptx_weight:
            raise ValueError(
                "PPOLagrangian shares the KL between reward and cost and has no ptx term: "
                'leave ppo.kl_in="reward" and ppo.ptx_weight=0.'
            )

    @property
    def roles(self):
        """PPO's, and the costs' value model."""
        return self.ppo.roles | {"cost_value": "scores", "old_cost_value": "scores"}

    def next_multiplier(self, multiplier: float, cost: float) -> float:
        """After a rollout of that mean cost."""
        rise = self.multiplier_rate * multiplier * (cost - self.cost_limit)
        most = math.log(self.multiplier_most / multiplier) if multiplier > 0 else 0.0
        return multiplier * math.exp(min(rise, most))

    def annotate(self, batches, outputs):
        """Advantage, and returns of both kinds [M, B, T]; which tokens have them."""
        far = jnp.zeros(batches.tokens.shape)
        if self.ppo.kl_weight:
            far = outputs["old"].logps - outputs["reference"].logps
        half = 0.5 * self.ppo.kl_weight * far
        out, parts = {}, {}
        for name, sign in (("reward", -1.0), ("cost", 1.0)):
            old = outputs["old_value" if sign < 0 else "old_cost_value"].scores
            ends, kept = jax.vmap(policy.at_ends)(batches.numbers[name], batches)
            gain = self.ppo.advantages(ends + sign * half, old, batches)
            out[f"{name}_returns"] = gain + old
            parts[name] = jnp.where(kept, gain, 0.0)
            out["kept"] = out.get("kept", 1.0) * kept
        weight = jnp.max(batches.numbers["multiplier"])
        mixed = (parts["reward"] - weight * parts["cost"]) / (1.0 + weight)
        return out | {"advantage": policy.whiten(mixed, out["kept"] > 0)}

    def loss(self, batch, outputs):
        """Terms `policy`, `value`, `cost_value`."""
        numbers = {"returns": batch.numbers["reward_returns"]}
        plain = batch.replace(numbers=batch.numbers | numbers)
        terms, metrics = self.ppo.loss(plain, outputs)
        old, returns = outputs["old_cost_value"].scores, batch.numbers["cost_returns"]
        scores = outputs["cost_value"].scores
        _, missed = self.ppo.value_loss(scores, old, returns, batch)
        mask = batch.numbers["kept"] > 0
        share = masked.mean(missed, mask)
        costs, paid = policy.of_responses(batch.numbers["cost"], batch.table)
        groups = batch.table[:, 0] >= 0
        return terms | {"cost_value": masked.Term(self.ppo.value_weight, *share)}, (
            metrics
            | {
                "cost": masked.mean(costs, paid),
                "multiplier": masked.mean(batch.numbers["multiplier"], groups),
            }
        )
