"""Critique modelling: learn the language feedback that people give.

Align Anything (arXiv:2412.15838), step one of learning from language feedback:

    L = - E_(x, y, c) log P(c | x, y),     log P(c | x, y) = sum_t log P(c_t | x, y, c_<t)

The critic reads a prompt x and a response y and writes the critique c; only c is scored.
A group's prompt is x, y and the words that ask for feedback (`data/views.py`), its
responses are critiques. A mean over critiques lets long ones weigh more, as the equation
says; `per_token` lets every token weigh the same, as SFT does.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Critique:
    """Negative log-likelihood of critiques.

    Attributes:
      per_token: the mean is over tokens instead of critiques.
    """

    per_token: bool = False

    roles: ClassVar = {"critic": "logps"}
    trains: ClassVar = ("critic",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ()

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Term `nll`, per critique or per token."""
        logps = outputs["critic"].logps
        tokens = masked.mean(-logps, batch.scored)
        sums = masked.by_group(masked.response_sum(-logps, batch), batch.table)
        critiques = masked.mean(sums, batch.table >= 0)
        total, count = tokens if self.per_token else critiques
        metrics = {
            "nll_per_token": tokens,
            "nll_per_critique": critiques,
            "token_probability": masked.mean(jnp.exp(logps), batch.scored),
        }
        return {"nll": masked.Term(1.0, total, count)}, metrics
