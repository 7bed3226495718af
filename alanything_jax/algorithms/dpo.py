"""Direct preference optimization and its links.

Rafailov et al. 2023 (arXiv:2305.18290), equation 7:

    h = [log p(y_w|x) - log p_ref(y_w|x)] - [log p(y_l|x) - log p_ref(y_l|x)]
    L = - log sigmoid(beta * h)

The policy should raise the chosen answer above the rejected one by more than the
reference does. Log-probabilities are sums over a response's tokens. A link (`links.py`)
turns the two differences into a loss per pair; several links may be summed. A second term
may hold the chosen answers up, which h alone does not: the negative log-likelihood of
their tokens (RPO, arXiv:2404.19733). MPO (arXiv:2411.10442) is
`DPO(link=((0.8, dpo.sigmoid), (0.2, dpo.bco_pair)), nll_weight=1.0)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.links import (  # noqa: F401
    apo_down,
    apo_zero,
    bco_pair,
    discopop,
    exo,
    hinge,
    ipo,
    nca,
    robust,
    sigmoid,
    sppo,
)
from alanything_jax.ops import masked

# chosen and rejected log-ratio, beta, label smoothing -> loss of a pair
Link = Callable[[jax.Array, jax.Array, float, float], jax.Array]


@dataclasses.dataclass(frozen=True)
class DPO:
    """Preference pairs against a reference.

    Attributes:
      beta: strength of the pull to the reference; IPO's tau.
      link: a `Link`, or several as (weight, link) pairs.
      label_smoothing: assumed share of flipped labels (cDPO), in [0, 0.5).
      nll_weight: weight of the chosen answers' negative log-likelihood per token.
      length_normalised: log-ratios are means over tokens instead of sums.
      tail_discount: 1 - alpha of LD-DPO (Liu et al. 2024, arXiv:2409.06411): by how much
        less the tokens count that lie beyond the length which a group's responses share.
      on_policy_weights: weigh a pair by how likely the policy is to say both (WPO, Zhou
        et al. 2024, arXiv:2406.11827): each answer's mean probability, geometric, without
        the paper's optional alignment by sum_v p(v)^2, which TRL always applies.
    """

    beta: float = 0.1
    link: Link | tuple[tuple[float, Link], ...] = sigmoid
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    length_normalised: bool = False
    tail_discount: float = 0.0
    on_policy_weights: bool = False

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
        """The reference's log-probability of every response, [M, R]."""
        logps = outputs["reference"].logps
        return {"reference_sum": jax.vmap(self._of_responses)(logps, batches)}

    def _of_responses(self, logps, batch):
        """[B, T] -> [R]: sums or means over tokens, those of the tail counting less."""
        if self.tail_discount:
            sizes = masked.by_group(masked.lengths(batch), batch.table)
            sizes = jnp.where(batch.table >= 0, sizes, jnp.inf)
            shared = jnp.repeat(jnp.min(sizes, axis=1), batch.table.shape[1])
            tail = masked.places(batch) >= shared[jnp.maximum(batch.response, 0)]
            logps = jnp.where(tail, (1.0 - self.tail_discount) * logps, logps)
        sums = masked.response_sum(logps, batch)
        return sums / masked.lengths(batch) if self.length_normalised else sums

    def loss(self, batch, outputs):
        """Term `dpo` per pair, `nll` per token; rewards are beta * (log p - log p_ref)."""
        logps = outputs["policy"].logps
        sums = self._of_responses(logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        chosen, rejected, mask = masked.pairs(ratio, batch.table)
        links = ((1.0, self.link),) if callable(self.link) else self.link
        losses = sum(
            weight * link(chosen, rejected, self.beta, self.label_smoothing)
            for weight, link in links
        )
        if self.on_policy_weights:
            mean = masked.response_sum(logps, batch) / masked.lengths(batch)
            of_w, of_l, _ = masked.pairs(jax.lax.stop_gradient(mean), batch.table)
            losses = losses * jnp.exp(of_w + of_l)
        terms = {"dpo": masked.Term(1.0, *masked.mean(losses, mask))}
        if self.nll_weight:
            nll = masked.chosen_nll(logps, batch)
            terms["nll"] = masked.Term(self.nll_weight, *nll)
        logp_w, logp_l, _ = masked.pairs(sums, batch.table)
        return terms, masked.pair_metrics(self.beta * ratio, batch.table) | {
            "logp_chosen": masked.mean(logp_w, mask),
            "logp_rejected": masked.mean(logp_l, mask),
        }
