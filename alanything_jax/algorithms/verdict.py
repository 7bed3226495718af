"""Generative reward model: the verdict on an answer is the next token.

GenRM (Zhang et al. 2024, arXiv:2408.15240, equations 4 and 5), I asks "is it good?":

    L = - log p(v | x, y, I),   v "Yes" of a good answer, "No" of a bad one
    r(x, y) = p("Yes" | x, y, I)

A group's prompt is x, y, I, and its responses the two verdicts, the right one first
(`Data(view="verdicts")`). Both are read from one prompt, so that their log-odds are too.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Likelihood of the right verdict.

    Attributes:
      two_way: among the two verdicts alone instead of the whole vocabulary.
    """

    two_way: bool = False

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
        """Term `verdict` per group; a reward here is the log-probability of a verdict."""
        logps = masked.response_sum(outputs["policy"].logps, batch)
        right, wrong, mask = masked.pairs(logps, batch.table)
        losses = -jax.nn.log_sigmoid(right - wrong) if self.two_way else -right
        terms = {"verdict": masked.Term(1.0, *masked.mean(losses, mask))}
        return terms, masked.pair_metrics(logps, batch.table)
