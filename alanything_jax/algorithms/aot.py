"""Alignment by optimal transport: the whole distribution of rewards, not single pairs.

Melnyk et al. 2024 (arXiv:2406.05882), equations 6 and 8; (i) is the i-th in order:

    unpaired   u = log p(y_w|x) - log p_ref(y_w|x),   v = the same of y_l
    paired     u = log p(y_w|x) - log p(y_l|x),       v = the same of p_ref
    L = mean_i link(u_(i) - v_(i))

Chosen answers should stochastically dominate the rejected ones: the best of the one beats
the best of the other, and so on down. The order is over all pairs of the step, found
before it without gradient; TRL sorts a microbatch.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms import dpo
from alanything_jax.algorithms.base import CURRENT, current_ratios
from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class AOT:
    """Pairs of a step against a reference, in order of reward.

    Attributes:
      beta, label_smoothing: as in DPO. link: one that reads the difference only.
      paired: u and v are of whole pairs (TRL's `aot`; else its `aot_unpaired`).
    """

    beta: float = 0.1
    link: dpo.Link = dpo.sigmoid
    label_smoothing: float = 0.0
    paired: bool = False

    roles: ClassVar = {"policy": "logps", "reference": "logps", CURRENT: "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = True
    min_responses: ClassVar = 2
    numbers: ClassVar = ()

    def annotate(self, batches, outputs):
        """The reference's sums [M, R]; the partner of each u and of each v, [M, G, K-1]."""
        pairs = jax.vmap(masked.pairs)
        ratio, fixed = current_ratios(batches, outputs)
        of_w, of_l, mask = pairs(ratio, batches.table)
        if self.paired:
            ref_w, ref_l, _ = pairs(fixed, batches.table)
            of_w, of_l = of_w - of_l + ref_w - ref_l, ref_w - ref_l
        u, v = (jnp.where(mask, x, jnp.inf).reshape(-1) for x in (of_w, of_l))

        def partner(own, others):
            rank = jnp.argsort(jnp.argsort(own))
            return jnp.where(mask, jnp.sort(others)[rank].reshape(mask.shape), 0.0)

        return {
            "reference_sum": fixed,
            "partner_of_u": partner(u, v),
            "partner_of_v": partner(v, u),
        }

    def loss(self, batch, outputs):
        """Term `aot` per pair."""
        sums = masked.response_sum(outputs["policy"].logps, batch)
        ratio = sums - batch.numbers["reference_sum"]
        u, v, mask = masked.pairs(ratio, batch.table)
        options = (self.beta, self.label_smoothing)
        if self.paired:
            of_w, of_l, _ = masked.pairs(sums, batch.table)
            u = of_w - of_l
        losses = self.link(u, batch.numbers["partner_of_u"], *options)
        if not self.paired:
            # v's gradient, of the same sum seen from its side: it adds no value.
            seen = self.link(batch.numbers["partner_of_v"], v, *options)
            losses += seen - jax.lax.stop_gradient(seen)
        terms = {"aot": masked.Term(1.0, *masked.mean(losses, mask))}
        return terms, masked.pair_metrics(self.beta * ratio, batch.table)
