"""Preferences without a reference: SimPO, CPO, ORPO.

    SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6)
        L = - log s(beta m_w - beta m_l - gamma),   m = log p(y|x) / |y|
    CPO (Xu et al. 2024, arXiv:2401.08417, eq. 5)
        L = - log s(beta log p(y_w|x) - beta log p(y_l|x)) - lambda log p(y_w|x)
    ORPO (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7)
        L = - log p(y_w|x) - lambda log s(odds_w - odds_l),   odds = m - log(1 - exp m)

s is the sigmoid. The likelihood of the chosen answers is per token of the step, as in the
authors' and TRL's code; ORPO's is of the answer alone, where TRL adds the prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


def mean(logps, lengths):
    """SimPO's reward of a response, m."""
    return logps / lengths


def total(logps, lengths):
    """CPO's reward of a response, log p(y|x)."""
    del lengths
    return logps


def log_odds(logps, lengths):
    """ORPO's reward of a response, log(P / (1 - P)) with P = exp m."""
    m = jnp.minimum(logps / lengths, -1e-7)  # P = 1 has no odds
    return m - jnp.log(-jnp.expm1(m))


@dataclasses.dataclass(frozen=True)
class ReferenceFree:
    """Pairs by the policy alone; the defaults are SimPO's.

    Attributes:
      beta: scale of the reward. margin: gamma, by which the chosen one has to lead.
      reward: of a response, from its log-probability and its length, both [R].
      weight: of the comparison.
      nll_weight: of the chosen answers' negative log-likelihood per token.
      label_smoothing: assumed share of flipped labels, in [0, 0.5).
    """

    beta: float = 2.0
    margin: float = 1.0
    reward: Callable[[jax.Array, jax.Array], jax.Array] = mean
    weight: float = 1.0
    nll_weight: float = 0.0
    label_smoothing: float = 0.0

    roles: ClassVar = {"policy": "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ()

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Terms `preference` per pair and, if asked for, `nll` per token."""
        logps, e = outputs["policy"].logps, self.label_smoothing
        sums = masked.response_sum(logps, batch)
        rewards = self.beta * self.reward(sums, masked.lengths(batch))
        chosen, rejected, mask = masked.pairs(rewards, batch.table)
        h = chosen - rejected - self.margin
        losses = -(1 - e) * jax.nn.log_sigmoid(h) - e * jax.nn.log_sigmoid(-h)
        terms = {"preference": masked.Term(self.weight, *masked.mean(losses, mask))}
        if self.nll_weight:
            nll = masked.chosen_nll(logps, batch)
            terms["nll"] = masked.Term(self.nll_weight, *nll)
        return terms, masked.pair_metrics(rewards, batch.table)


SimPO = ReferenceFree


def CPO(beta: float = 0.1, nll_weight: float = 1.0) -> ReferenceFree:
    """CPO's settings; `nll_weight` is its lambda."""
    return ReferenceFree(beta, 0.0, total, 1.0, nll_weight)


def ORPO(weight: float = 0.1) -> ReferenceFree:
    """ORPO's settings; `weight` is its lambda."""
    return ReferenceFree(1.0, 0.0, log_odds, weight, 1.0)
