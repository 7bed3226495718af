"""Supervised fine-tuning: maximum likelihood of the scored tokens.

    L = - sum_t log p(y_t | x, y_<t) / number of scored tokens of the step

Every scored token of the step weighs the same, whichever microbatch it lies in.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class SFT:
    """Negative log-likelihood per token; no hyperparameters."""

    roles: ClassVar = {"policy": "logps"}
    trains: ClassVar = ("policy",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ()

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Term `nll` per scored token."""
        logps = outputs["policy"].logps
        total, count = masked.mean(-logps, batch.scored)
        tokens = masked.mean(jnp.exp(logps), batch.scored)
        return {"nll": masked.Term(1.0, total, count)}, {"token_probability": tokens}
