"""Direct preference optimization and its links.

Rafailov et al. 2023 (arXiv:2305.18290), equation 7:

    h = [log p(y_w|x) - log p_ref(y_w|x)] - [log p(y_l|x) - log p_ref(y_l|x)]
    L = - log sigmoid(beta * h)

The policy should raise the chosen answer above the rejected one by more than the
reference does. Log-probabilities are sums over a response's tokens. A link turns h into
a loss per pair; label smoothing e mixes in the flipped pair: (1-e) link(h) + e link(-h).
A second term may hold the chosen answers up, which h alone does not: the negative
log-likelihood of their tokens (RPO, arXiv:2404.19733).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


def sigmoid(h: jax.Array, beta: float) -> jax.Array:
    """DPO's own link, `-log sigmoid(beta h)`."""
    return -jax.nn.log_sigmoid(beta * h)


def hinge(h: jax.Array, beta: float) -> jax.Array:
    """SLiC-HF's margin (Zhao et al. 2023, arXiv:2305.10425): `max(0, 1 - beta h)`."""
    return jax.nn.relu(1.0 - beta * h)


def ipo(h: jax.Array, beta: float) -> jax.Array:
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17): `(h - 1/(2 beta))^2`.

    h is of summed log-probabilities as in the paper; TRL averages over tokens.
    """
    return jnp.square(h - 1.0 / (2.0 * beta))


@dataclasses.dataclass(frozen=True)
class DPO:
    """Preference pairs against a reference.

    Attributes:
      beta: strength of the pull to the reference; IPO's tau.
      link: loss of one pair as a function of h and beta.
      label_smoothing: assumed share of flipped labels (cDPO), in [0, 0.5).
      nll_weight: weight of the chosen answers' negative log-likelihood per token.
    """

    beta: float = 0.1
    link: Callable[[jax.Array, float], jax.Array] = sigmoid
    label_smoothing: float = 0.0
    nll_weight: float = 0.0

    roles: ClassVar = {"policy": "logps", "reference": "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ()

    def __post_init__(self):
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"DPO got beta={self.beta}, label_smoothing={self.label_smoothing}: "
                "beta must be above 0 and label_smoothing in [0, 0.5)."
            )

    def annotate(self, batches, outputs):
        """The reference's summed log-probabilities, [M, R]."""
        sums = jax.vmap(masked.response_sum)(outputs["reference"].logps, batches)
        return {"reference_sum": sums}

    def loss(self, batch, outputs):
        """Term `dpo` per pair, `nll` per token; rewards are beta * (log p - log p_ref)."""
        sums = masked.response_sum(outputs["policy"].logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        chosen, rejected, mask = masked.pairs(ratio, batch.table)
        h = chosen - rejected
        smooth = self.label_smoothing
        losses = (1 - smooth) * self.link(h, self.beta) + smooth * self.link(
            -h, self.beta
        )
        total, count = masked.mean(losses, mask)
        logp_w, logp_l, _ = masked.pairs(sums, batch.table)
        metrics = {
            "reward_accuracy": masked.mean(jnp.where(h > 0, 1.0, 0.0), mask),
            "reward_margin": masked.mean(self.beta * h, mask),
            "reward_chosen": masked.mean(self.beta * chosen, mask),
            "reward_rejected": masked.mean(self.beta * rejected, mask),
            "logp_chosen": masked.mean(logp_w, mask),
            "logp_rejected": masked.mean(logp_l, mask),
        }
        terms = {"dpo": masked.Term(1.0, total, count)}
        if self.nll_weight:
            tokens = masked.response_sum(jnp.ones_like(outputs["policy"].logps), batch)
            count = jnp.sum(masked.by_group(tokens, batch.table)[:, 0])
            total = -jnp.sum(masked.by_group(sums, batch.table)[:, 0])
            terms["nll"] = masked.Term(self.nll_weight, total, count)
        return terms, metrics
