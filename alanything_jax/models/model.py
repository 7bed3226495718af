"""A model: a family's name and a frozen config, over pure functions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.models import decoder, heads
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.params import Tree
from alanything_jax.schema import Batch


@dataclasses.dataclass(frozen=True)
class Model:
    """What `hub.load` gives beside parameters; holds no arrays."""

    family: str
    config: DecoderConfig

    def specs(self, score_head: bool = False) -> Tree:
        """Declaration of the parameters."""
        return decoder.param_specs(self.config, score_head)

    def inputs(self, **arrays: np.ndarray) -> Batch:
        """A batch from the arrays of the family's HF tokenizer, under their HF names.

        Args:
          **arrays: `input_ids` [B, T] and optionally `attention_mask` [B, T] (1 = real).

        Raises ValueError: an array this family does not know, or a shape that differs.
        """
        unknown = set(arrays) - {"input_ids", "attention_mask"}
        if unknown or "input_ids" not in arrays:
            raise ValueError(
                f"{self.family} takes input_ids and attention_mask; got "
                f"{sorted(arrays)}. Drop {sorted(unknown)} or load a model that uses it."
            )
        tokens = np.asarray(arrays["input_ids"], np.int32)
        real = np.asarray(arrays.get("attention_mask", np.ones_like(tokens)), np.int32)
        if real.shape != tokens.shape:
            raise ValueError(
                f"attention_mask {real.shape} and input_ids {tokens.shape} differ."
            )
        return plain_batch(tokens, real)

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


def plain_batch(tokens: np.ndarray, real: np.ndarray) -> Batch:
    """Rows of one sequence each: token ids [B, T] and a 0/1 mask of the real ones.

    Rotary positions count every slot, padding too, as transformers does when it is
    given no position ids; every real token but a row's first is scored.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    real = jnp.asarray(real, jnp.int32)
    slot = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    zero = jnp.zeros_like(tokens)
    after = (real * jnp.pad(real[:, :-1], ((0, 0), (1, 0)))) > 0
    return Batch(
        tokens=tokens,
        group=real,
        branch=real,
        index=slot,
        position=jnp.stack([slot] * 3, axis=1),
        stream=zero,
        span=zero,
        source=jnp.where(after, slot - 1, -1),
        response=jnp.where(after, jnp.arange(tokens.shape[0])[:, None], -1),
        table=jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None],
    )
