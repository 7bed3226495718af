"""Distillation: the policy takes on a teacher's distribution, token by token.

Agarwal et al. 2023 (arXiv:2306.13649), equation 1 and algorithm 1 (GKD), with p the
teacher and q the policy:

    D = beta KL(p | m) + (1 - beta) KL(q | m),    m = beta p + (1 - beta) q
    L = sum_t D(p, q)(. | x, y_<t) / number of scored tokens of the step

Of both are kept the teacher's `top` likeliest ids, and one number for the rest; D of
those is at most D of the whole. beta = 0 is the forward divergence KL(p | q), which
covers all that the teacher might say, and beta = 1 the reverse one KL(q | p), which keeps
to what it likes best; both by themselves, since D vanishes there (as TRL has it).

Responses of the data make it offline. A `rollout` without rewards makes it on-policy:
the policy's own answers, and the gradient is not passed through the sampling of them.
`rollout.ptx` beside it are the paper's share 1 - lambda of data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.algorithms.base import TEACHER, TEACHER_IDS
from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Distill:
    """A teacher's likeliest ids at every scored token.

    Attributes:
      beta: in [0, 1]; 0 = forward, 1 = reverse.
      top: ids that are kept; 0 = the vocabulary, whose log-probs of all tokens then lie in
        memory.
      temperature: by which both models' logits are divided in D, whatever the sampling's.
      nll_weight: of the responses' negative log-likelihood per token.
    """

    beta: float = 0.5
    top: int = 64
    temperature: float = 1.0
    nll_weight: float = 0.0

    roles: ClassVar = {"policy": "top", TEACHER: "top"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ()

    def __post_init__(self):
        if not 0 <= self.beta <= 1 or self.top < 0 or self.temperature <= 0:
            raise ValueError(
                f"Distill got beta={self.beta}, top={self.top}, temperature="
                f"{self.temperature}: beta must be in [0, 1], top at least 0 and "
                "temperature above 0."
            )

    def annotate(self, batches, outputs):
        """The ids whose log-probs the policy is to say."""
        del batches
        return {TEACHER_IDS: outputs[TEACHER].ids}

    def loss(self, batch, outputs):
        """Terms `divergence` and `nll` per token; `teacher_top`, what the ids kept hold of
        the teacher's probability."""
        policy, teacher = outputs["policy"], outputs[TEACHER].top
        teacher = jax.lax.stop_gradient(teacher)
        losses = divergence(teacher, policy.top, self.beta)
        terms = {
            "divergence": masked.Term(1.0, *masked.mean(losses, batch.scored)),
        }
        if self.nll_weight:
            nll = masked.mean(-policy.logps, batch.scored)
            terms["nll"] = masked.Term(self.nll_weight, *nll)
        kept = 1.0 - jnp.exp(teacher[..., -1])
        return terms, {
            "teacher_top": masked.mean(kept, batch.scored),
            "token_probability": masked.mean(jnp.exp(policy.logps), batch.scored),
        }


def divergence(teacher: jax.Array, policy: jax.Array, beta: float) -> jax.Array:
    """D of log-probs over the last dim, which is gone from what is returned."""
    if beta in (0, 1):
        return _kl(teacher, policy) if beta == 0 else _kl(policy, teacher)
    mixed = jnp.logaddexp(math.log(beta) + teacher, math.log1p(-beta) + policy)
    return beta * _kl(teacher, mixed) + (1 - beta) * _kl(policy, mixed)


def _kl(p, q):
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)
