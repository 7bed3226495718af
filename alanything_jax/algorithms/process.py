"""Process reward model: every step of an answer is right or wrong.

Lightman et al. 2023 (arXiv:2305.20050), section 2.6; Wang et al. 2023 (arXiv:2312.08935,
equation 3):

    L = - sum over steps of log sigmoid(s r),   s = +1 for a right step, -1 for a wrong one

The score r is read at a step's last token. The number `step_label` [B, T] holds s there and
0 at all other tokens. The mean is over steps.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from alanything_jax.ops import masked


@dataclasses.dataclass(frozen=True)
class Process:
    """Scalar scores read at each step's end; no hyperparameters."""

    roles: ClassVar = {"reward": "scores"}
    trains: ClassVar = ("reward",)
    couples: ClassVar = False
    min_responses: ClassVar = 1
    numbers: ClassVar = ("step_label",)

    def annotate(self, batches, outputs):
        """Nothing is needed beyond the batch itself."""
        del batches, outputs
        return {}

    def loss(self, batch, outputs):
        """Term `process` per step."""
        scores, label = outputs["reward"].scores, batch.numbers["step_label"]
        mask = batch.scored & (label != 0)
        total, count = masked.mean(-jax.nn.log_sigmoid(label * scores), mask)
        right = jnp.where(label * scores > 0, 1.0, 0.0)
        return {"process": masked.Term(1.0, total, count)}, {
            "step_accuracy": masked.mean(right, mask),
            "reward": masked.mean(scores, mask),
        }
