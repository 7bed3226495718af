"""Kernels of 8 or 4 bits a value, for a frozen base under an adapter (QLoRA).

`{"kernel": w}` becomes `{"kernel_q": integers, "kernel_scale": float32}`; a layer makes
floats of its own kernels alone, inside the scan over layers. "int8" is symmetric, one
scale an output. "nf4" (Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E)
takes blocks of 64 inputs, each scaled by its largest magnitude, to 16 quantiles of a
normal distribution; of two values in a byte the first half of a block has the low bits.
Its second quantisation, of the scales, is left out.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.models.params import ParamSpec, Tree, flatten, unflatten

KINDS = ("int8", "nf4")
BLOCK = 64
# Fewer inputs than this to a scale, and the scales are most of what is kept.
_MIN_BLOCK = 8
# Blocks are dealt out over devices where their number is a multiple of this.
_SHARED = 8
# Of a kernel: as floats, or in integers.
NAMES = ("kernel", "kernel_q", "kernel_scale")


def num_inputs(path: str) -> int:
    """Input dims of the kernel at a path such as `layers/attn/o`, after leading ones."""
    return 2 if path.rsplit("/", 1)[-1] == "o" else 1


def _nf4():
    """Equally likely stretches of a normal: 7 below zero, zero, 8 above; -1 to 1."""
    quantile = statistics.NormalDist().inv_cdf
    # The mean of the outermost quantiles' places among 15 and among 16 values.
    outer = 1 - (1 / 30 + 1 / 32) / 2
    above, below = (
        [quantile(outer + (0.5 - outer) * n / count) for n in range(count)]
        for count in (8, 7)
    )
    values = sorted(
        [*(-x / below[0] for x in below), 0.0, *(x / above[0] for x in above)]
    )
    return np.array(values, np.float32)


NF4 = _nf4()


def specs(tree: Tree, kind: str) -> Tree:
    """The declaration after `quantize`; with "" as it is.

    Raises ValueError: an unknown kind; inputs that make no blocks.
    """
    if kind and kind not in KINDS:
        raise ValueError(f"quantize={kind!r}: choose one of {KINDS}, or '' for none.")
    out = {}
    for path, spec in flatten(tree).items():
        out |= _specs_of(path, spec, kind) if kind and _covers(path) else {path: spec}
    return unflatten(out)


def _covers(path):
    """Kernels of the decoder's layers, but not what chooses among experts."""
    within = path.startswith(("layers/attn/", "layers/mlp/"))
    return within and path.endswith("/kernel") and "/router/" not in path


def _inputs(path, spec):
    """Which dims of a stacked kernel are its inputs."""
    lead = 2 if "expert" in spec.axes else 1
    return range(lead, lead + num_inputs(path.removesuffix("/kernel")))


def _specs_of(path, spec, kind):
    dims = _inputs(path, spec)
    last = dims[-1]
    if kind == "int8":
        dtype, sizes, scales = "int8", {}, dict.fromkeys(dims, 1)
    else:
        block = _block(path, spec.shape[last])
        dtype, sizes = "uint8", {last: spec.shape[last] // 2}
        scales = {last: spec.shape[last] // block}

    # Few scales lie everywhere: a mesh could not share them evenly.
    lie = [
        None if scales.get(n, _SHARED) % _SHARED else axis
        for n, axis in enumerate(spec.axes)
    ]

    def change(sizes, axes, dtype):
        shape = tuple(sizes.get(n, size) for n, size in enumerate(spec.shape))
        return ParamSpec(shape, tuple(axes), "zeros", spec.fan_in, dtype)

    return {
        f"{path}_q": change(sizes, spec.axes, dtype),
        f"{path}_scale": change(scales, lie, "float32"),
    }


def _block(path, size):
    """Inputs of a scale: 64, or the largest power of two that divides them."""
    block = math.gcd(size, BLOCK)
    if block < _MIN_BLOCK:
        raise ValueError(
            f'quantize="nf4": {path} has {size} inputs in a row, which blocks of '
            f'{_MIN_BLOCK} or more do not divide. Use quantize="int8".'
        )
    return block


def float_shape(path: str, spec: ParamSpec) -> tuple[int, ...]:
    """Of a declared `.../kernel` or `.../kernel_q`, the shape as floats."""
    if not path.endswith("_q"):
        return spec.shape
    last = _inputs(path.removesuffix("_q"), spec)[-1]
    packed = 2 if spec.dtype == "uint8" else 1
    return tuple(s * (packed if n == last else 1) for n, s in enumerate(spec.shape))


def stored(path: str, value: Any, spec: ParamSpec, kind: str) -> dict[str, Any]:
    """What is kept of the parameter at `path`: itself, or its kernel's two parts."""
    if not kind or not _covers(path):
        return {path: value}
    dims = tuple(n - 1 for n in _inputs(path, spec))
    block = _block(path, spec.shape[dims[-1] + 1]) if kind == "nf4" else 0
    q, scale = _quantize(value, dims, block)
    return {f"{path}_q": q, f"{path}_scale": scale}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantize(kernel, dims, block):
    """Integers and scales of a stacked kernel, a layer at a time; block 0 = int8."""

    def layer(w):
        w = w.astype(jnp.float32)
        if not block:
            scale = jnp.max(jnp.abs(w), axis=dims, keepdims=True) / 127
            return jnp.round(w / jnp.where(scale == 0, 1, scale)).astype(
                jnp.int8
            ), scale
        axis = dims[-1]
        blocks = w.reshape(*w.shape[:axis], -1, block, *w.shape[axis + 1 :])
        scale = jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True)
        unit = blocks / jnp.where(scale == 0, 1, scale)
        middles = (NF4[1:] + NF4[:-1]) / 2
        codes = sum((unit > middle).astype(jnp.uint8) for middle in middles)
        low, high = jnp.split(codes, 2, axis=axis + 1)
        shape = (*w.shape[:axis], w.shape[axis] // 2, *w.shape[axis + 1 :])
        return (low | (high << 4)).reshape(shape), jnp.squeeze(scale, axis + 1)

    return jax.lax.map(layer, kernel)


def quantize(params: Tree, tree: Tree, kind: str) -> Tree:
    """`params`, declared by `tree`, with the kernels of layers in integers."""
    named, out = flatten(tree), {}
    for path, value in flatten(params).items():
        out |= stored(path, value, named[path], kind)
    return unflatten(out)


def kernel(p: dict[str, Any]) -> jax.Array:
    """The kernel of a layer's linear map: as it is, or float32 from its two parts."""
    return p["kernel"] if "kernel" in p else floats(p["kernel_q"], p["kernel_scale"])


def output_dims(p: dict[str, Any], num_in: int) -> tuple[int, ...]:
    """Dims of the outputs of a linear map, behind those of its `num_in` inputs."""
    return (p["kernel"] if "kernel" in p else p["kernel_q"]).shape[num_in:]


def product(dot: Callable[..., jax.Array], x: jax.Array, p: dict[str, Any], *more: Any):
    """`dot(x, kernel, *more)`.

    Floats made from integers are made again for the backward pass: kept, the scan over
    layers would pile up those of all layers.
    """
    if "kernel" in p:
        return dot(x, p["kernel"], *more)

    def made(x, p, *more):
        return dot(x, kernel(p), *more)

    return jax.checkpoint(made, prevent_cse=False)(x, p, *more)


def floats(q: jax.Array, scale: jax.Array) -> jax.Array:
    """float32 kernel from its integers and scales."""
    if q.dtype == jnp.int8:
        return q.astype(jnp.float32) * scale
    axis = next(n for n, size in enumerate(q.shape) if size != scale.shape[n])
    blocks = q.reshape(*scale.shape[: axis + 1], -1, *q.shape[axis + 1 :])
    codes = jnp.concatenate([blocks & 15, blocks >> 4], axis + 1)
    shape = (*q.shape[:axis], 2 * q.shape[axis], *q.shape[axis + 1 :])
    return (_values(codes) * jnp.expand_dims(scale, axis + 1)).reshape(shape)


def _values(codes):
    """NF4[codes] by selects: a gather is 8 times slower on a CPU (measured)."""
    out = list(NF4)
    for bit in range(4):
        on = (codes >> bit) & 1 == 1
        out = [jnp.where(on, b, a) for a, b in zip(out[::2], out[1::2], strict=True)]
    return out[0]


def dequantize(params: Tree) -> Tree:
    """All kernels as floats, of the dtype that embeddings have: for export."""
    dtype = params["embed"]["text"]["table"].dtype
    out, flat = {}, flatten(params)
    for path, value in flat.items():
        base = path.removesuffix("_q")
        if path.endswith("kernel_q"):
            out[base] = _rounded(value, flat[f"{base}_scale"], dtype)
        elif not path.endswith("kernel_scale"):
            out[path] = value
    return unflatten(out)


@functools.partial(jax.jit, static_argnums=2)
def _rounded(q, scale, dtype):
    return jax.lax.map(lambda parts: floats(*parts).astype(dtype), (q, scale))


def cast(params: Tree, dtype: Any) -> Tree:
    """`params` in a dtype, but for what `quantize` made."""
    flat = flatten(params).items()
    return unflatten(
        {p: x if p.endswith(NAMES[1:]) else x.astype(dtype) for p, x in flat}
    )


def sizes(flat: Mapping[str, Any]) -> dict[str, int]:
    """Path -> how many weights an array stands for; scales are none."""
    return {
        path: x.size * (2 if x.dtype == jnp.uint8 else 1)
        for path, x in flat.items()
        if not path.endswith("/kernel_scale")
    }
