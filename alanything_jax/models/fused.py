"""Attention by cuDNN's fused kernel, for NVIDIA cards, through `jax.nn`.

cuDNN has no notion of the group rule, so it gets the rule as a mask, which it adds to the
scores: it computes all T x T pairs, but no scores are kept. It wants bfloat16 or float16,
an even T, and heads of a multiple of 8, at most 128 (256 from Hopper on).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

# "xla" is the same call without a card; a test sets it to compare with the reference.
IMPLEMENTATION = "cudnn"


@flax.struct.dataclass
class Plan:
    """The mask as `jax.nn` takes it, [B, 1, T, T] bool, and seen: [B, T, 1, 1] bool."""

    mask: jax.Array
    seen: jax.Array


def plan(mask: jax.Array) -> Plan:
    """From the rule [B, T, T], in which all but padding sees itself.

    Padding is made to see itself too, and its result zero: cuDNN masks by a large number,
    and a row that is nothing but it could overflow in the backward pass.

    Raises ValueError: this program is not compiled for a GPU.
    """
    if IMPLEMENTATION == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            "attention backend 'cudnn' runs on NVIDIA cards; JAX's devices here are of "
            f"{jax.default_backend()!r}. Choose blockwise (any device) or flash (TPU), or "
            "pip install 'alanything_jax[cuda]' beside a card."
        )
    own = jnp.eye(mask.shape[-1], dtype=bool)
    seen = jnp.any(mask & own, axis=-1)
    return Plan((mask | own)[:, None], seen[..., None, None])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, planned: Plan) -> jax.Array:
    """q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H].

    Raises ValueError: numbers of 32 bits, which cuDNN does not take.
    """
    if IMPLEMENTATION == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention backend 'cudnn' takes bfloat16 or float16, not {q.dtype}: set "
            "model.compute_dtype to bfloat16, or choose blockwise."
        )
    out = jax.nn.dot_product_attention(
        q, k, v, mask=planned.mask, implementation=IMPLEMENTATION
    )
    return jnp.where(planned.seen, out, 0)
