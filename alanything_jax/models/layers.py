"""Norm, rotation, gated feed-forward: the pieces a decoder layer is made of."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.models import quant
from alanything_jax.models.config import DecoderConfig, LinearRope, Llama3Rope
from alanything_jax.models.lora import magnitudes, matrices


def rms_norm(
    x: jax.Array, scale: jax.Array, eps: float, plus_one: bool = False
) -> jax.Array:
    """`x / rms(x) * scale` over the last dim; statistics in float32 whatever x is.

    With `plus_one` times 1 + scale, in float32 too (Gemma).
    """
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    unit = x32 * jax.lax.rsqrt(variance + eps)
    if plus_one:
        return (unit * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return unit.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
    """LayerNorm over the last dim; all of it in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + eps)
    return (unit * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rope_frequencies(cfg: DecoderConfig, local: bool = False) -> jax.Array:
    """[H/2] float32 radians per position, after the family's scaling.

    `local`: of sliding layers, where those have a theta of their own.
    """
    exponents = jnp.arange(0, cfg.head_width, 2, dtype=jnp.float32) / cfg.head_width
    if local and cfg.local_theta:
        return 1.0 / (cfg.local_theta**exponents)
    frequencies = 1.0 / (cfg.rope_theta**exponents)
    scaling = cfg.rope_scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearRope):
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def _llama3(frequencies: jax.Array, scaling: Llama3Rope) -> jax.Array:
    """Long waves divided by `factor`, short ones kept, a linear blend between."""
    wavelength = 2 * math.pi / frequencies
    original = scaling.original_max_positions
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = jnp.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rope_tables(
    cfg: DecoderConfig, position: jax.Array, local: bool = False
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [B, T, H/2] float32, for positions [B, 3, T]."""
    position = position.astype(jnp.float32)
    if cfg.mrope is None:
        turns = position[:, 0, :, None]
    else:
        turns = jnp.moveaxis(position[:, np.array(axes_of_frequencies(cfg))], 1, 2)
    angles = turns * rope_frequencies(cfg, local)
    return jnp.cos(angles), jnp.sin(angles)


def axes_of_frequencies(cfg: DecoderConfig) -> list[int]:
    """Which of the three position axes turns each of the H / 2 frequencies."""
    sections, half = cfg.mrope.sections, cfg.head_width // 2
    if not cfg.mrope.interleaved:
        runs = [axis for axis, size in enumerate(sections) for _ in range(size)]
        return runs[:half]
    return [n % 3 if n < 3 * sections[n % 3] else 0 for n in range(half)]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding, half-split layout. x [B, T, N, H]; cos, sin [B, T, H/2]."""
    cos, sin = (table[:, :, None, :].astype(x.dtype) for table in (cos, sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )


@jax.custom_vjp
def mixed_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """float32 x [n, i] @ w [i, o] with factors rounded to bfloat16, sums in float32.

    So are the factors of its gradients, as in torch's autocast. Said by casts, because
    XLA for CPU takes no notice of a dot's `precision` (measured: 1.7x of float32's rate).
    """
    return _rounded_dot(x, w)


def _rounded_dot(x, w):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def _mixed_forward(x, w):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _rounded_dot(x, w), (x, w)


def _mixed_backward(saved, grad):
    x, w = saved
    return _rounded_dot(grad, w.T), _rounded_dot(x.T, grad)


mixed_dot.defvjp(_mixed_forward, _mixed_backward)


def dense(
    x: jax.Array,
    p: dict,
    lora: dict | None,
    num_in: int,
    scale: float,
    mixed: bool = False,
) -> jax.Array:
    """`x @ kernel + bias`, plus `scale * (x @ a.T) @ b` where an adapter is given.

    The last `num_in` dims of x meet the first `num_in` dims of the kernel, which may be
    in integers (`quant`); `mixed` multiplies by it in bfloat16 (`mixed_dot`). Of DoRA
    (`lora`), both products are scaled by output.
    """
    lead, fan_in = x.shape[: x.ndim - num_in], math.prod(x.shape[x.ndim - num_in :])
    # As plain matrices: XLA for CPU copies both sides of a gradient's contraction over
    # two dims (measured: 1.4x the time of a kernel's forward and backward pass).
    flat = x.reshape(-1, fan_in)

    def dot(flat, kernel):
        matrix = kernel.reshape(fan_in, -1)
        return mixed_dot(flat, matrix) if mixed else flat @ matrix.astype(x.dtype)

    y = quant.product(dot, flat, p)
    if lora is not None:
        a, b = (
            lora[n].reshape(lora[n].shape[0], -1).astype(x.dtype) for n in ("a", "b")
        )
        y = y + (scale * (flat @ a.T)) @ b
        if "m" in lora:
            m, norm = magnitudes(*matrices(quant.kernel(p), lora), scale)
            y = y * (m / norm).astype(y.dtype)
    y = y.reshape(*lead, *quant.output_dims(p, num_in))
    return y + p["bias"].astype(x.dtype) if "bias" in p else y


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def gated_mlp(
    x: jax.Array,
    p: dict,
    lora: dict,
    scale: float,
    mixed: bool = False,
    activation: str = "silu",
) -> jax.Array:
    """SwiGLU and kin: `down(activation(gate(x)) * up(x))`. x [B, T, D]."""
    gate = dense(x, p["gate"], lora.get("gate"), 1, scale, mixed)
    up = dense(x, p["up"], lora.get("up"), 1, scale, mixed)
    inner = ACTIVATIONS[activation](gate) * up
    return dense(inner, p["down"], lora.get("down"), 1, scale, mixed)
