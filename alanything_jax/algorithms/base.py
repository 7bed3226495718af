"""What an algorithm is: a frozen dataclass of hyperparameters beside pure functions.

Nothing inherits from the Protocol below; any module of this package that holds such a
dataclass is found and examined by tests/algorithms/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import flax.struct
import jax

from alanything_jax.ops import masked
from alanything_jax.ops.masked import Mean, Term
from alanything_jax.schema import Batch

Reads = Literal["logps", "scores", "top"]

# The trained role as the step finds it, without gradient: for `annotate`, where a
# statistic of the step is of the policy itself. It costs one more forward pass.
CURRENT = "current"

# Roles whose numbers were recorded when the responses were sampled: the policy that the
# ratios are against, the sampler itself (other code may round otherwise), and the value
# models as they were, whose scores here stand at the tokens that they foresee.
RECORDED = ("old", "sampler", "old_value", "old_cost_value")

# A frozen role with a model of its own (`Experiment.teacher`). It says its likeliest ids,
# which `annotate` hands on under this name; a trained role that reads "top" reads them.
TEACHER = "teacher"
TEACHER_IDS = "teacher_ids"


@flax.struct.dataclass
class Outputs:
    """What a role computed for every token; each [B, T] float32, or None if not asked.

    Attributes:
      logps: log p(token), 0 where not scored.
      scores: the scalar head.
      top: [B, T, k + 1] log-probs of the teacher's k likeliest ids and, last, of all
        other ids together. ids: [B, T, k] int32, those ids, from the teacher alone.
    """

    logps: jax.Array | None = None
    scores: jax.Array | None = None
    top: jax.Array | None = None
    ids: jax.Array | None = None


def rollout_roles(kl_weight: float, **more: Reads) -> dict[str, Reads]:
    """Roles of an algorithm that learns from rollouts: policy, old policy and sampler,
    and the reference where its distance counts."""
    roles: dict[str, Reads] = {"policy": "logps", "old": "logps", "sampler": "logps"}
    return roles | more | ({"reference": "logps"} if kl_weight else {})


def scores_trained(algorithm: Algorithm) -> bool:
    """Whether the first trained role has the scalar head in the language model's place."""
    return algorithm.roles[algorithm.trains[0]] == "scores"


def current_ratios(
    batches: Batch, outputs: Mapping[str, Outputs]
) -> tuple[jax.Array, jax.Array]:
    """Of a step's responses, [M, R] each: log p / p_ref of the policy as it is now, and
    the reference's log p; for `annotate`, whose batches are stacked."""
    sums = jax.vmap(masked.response_sum)
    fixed = sums(outputs["reference"].logps, batches)
    return sums(outputs[CURRENT].logps, batches) - fixed, fixed


@runtime_checkable
class Algorithm(Protocol):
    """The contract every algorithm file keeps.

    Attributes:
      roles: role name -> what the loss reads of it. `reference` is never trained;
        see `CURRENT`, `TEACHER`.
      trains: the roles with gradients; the first is the model that is exported.
      couples: whether the loss of one response needs its group's others, so that a
        group must stay inside one microbatch.
      min_responses: responses a group needs to say anything.
      numbers: names of the per-group numbers of the data that the loss reads.
    """

    roles: Mapping[str, Reads]
    trains: tuple[str, ...]
    couples: bool
    min_responses: int

    @property
    def numbers(self) -> tuple[str, ...]: ...

    def annotate(
        self, batches: Batch, outputs: Mapping[str, Outputs]
    ) -> Mapping[str, jax.Array]:
        """Numbers without gradient over all groups of the step.

        Every array of `batches` and `outputs` has a leading dim M (microbatches);
        so has what comes back, which is added to `batch.numbers`.
        """
        ...

    def loss(
        self, batch: Batch, outputs: Mapping[str, Outputs]
    ) -> tuple[dict[str, Term], dict[str, Mean]]:
        """Named terms to minimise and metrics to report, of one microbatch."""
        ...
