"""A model: a family's name and a frozen config, over pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from alanything_jax.models import decoder, heads, quant
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import family_of
from alanything_jax.models.families.common import Tensor, tensors
from alanything_jax.models.params import Tree
from alanything_jax.schema import Batch


@dataclasses.dataclass(frozen=True)
class Model:
    """What `hub.load` gives beside parameters.

    Attributes:
      codes: the frozen codec of a family whose pictures are codes (`families.codes`).
      quantize: how kernels of layers are kept (`quant`): "int8", "nf4", or "" as floats.
    """

    family: str
    config: DecoderConfig
    codes: Any = dataclasses.field(default=None, compare=False, repr=False)
    quantize: str = ""

    def specs(self, score_head: bool = False) -> Tree:
        """Declaration of the parameters."""
        return quant.specs(decoder.param_specs(self.config, score_head), self.quantize)

    def tensors(self, score_head: bool = False) -> dict[str, Tensor]:
        """Every tensor that a checkpoint must hold, by its name on disk."""
        names = family_of(self.family).names(self.config)
        return tensors(decoder.param_specs(self.config, score_head), names)

    def inputs(self, **arrays: np.ndarray) -> Batch:
        """A batch from the arrays of the family's HF processor, under their HF names.

        Args:
          **arrays: `input_ids` [B, T], optionally `attention_mask` [B, T] (1 = real), and
            what the family's processor gives of media.

        Raises ValueError: an array this family does not know, or a shape that differs.
        """
        family = family_of(self.family)
        if family.codes is None:
            return family.inputs(self.config, arrays)
        return family.inputs(self.config, arrays, self.codes)

    def logits(self, params: Tree, inputs: Batch) -> jax.Array:
        """float32 [B, T, V] with the positions that transformers would use."""
        states = decoder.hidden(
            params, self.config, inputs, compute_dtype=_dtype(params)
        )
        return heads.logits(params, self.config, states)

    def scores(self, params: Tree, inputs: Batch) -> jax.Array:
        """float32 [B, T]: the scalar head of a reward model at every token."""
        states = decoder.hidden(
            params, self.config, inputs, compute_dtype=_dtype(params)
        )
        return heads.scores(params, states)


def _dtype(params: Tree):
    return params["embed"]["text"]["table"].dtype
