"""LoRA: a second, small pytree beside frozen parameters.

Hu et al. 2021 (arXiv:2106.09685): W + scale * A^T B with A [r, in] random and B [r, out]
zero, so training starts at the base model; scale = alpha / rank, or alpha / sqrt(rank)
(rsLoRA, arXiv:2312.03732). The policy with its LoRA off is the reference model.

DoRA (Liu et al. 2024, arXiv:2402.09353, equation 5): m * (W + scale * A^T B) / ||W + scale *
A^T B||, with norms and m per output, m trained from ||W|| on, and the norm a constant to the
gradient (section 4.3). What we keep is m - ||W||: its gradients are m's, and it starts at 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from alanything_jax.models import quant
from alanything_jax.models.params import ParamSpec, Tree, flatten, matches, unflatten
from alanything_jax.models.quant import num_inputs


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapter settings.

    Attributes:
      rank: inner size r.
      alpha: numerator of the scale.
      targets: pattern over parameter paths of kernels; `*` any characters, `|` or.
      rank_stabilized: scale by alpha / sqrt(rank) instead of alpha / rank.
      dora: train the magnitudes of outputs, too.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "layers/attn/*|layers/mlp/*"
    rank_stabilized: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """What multiplies A^T B."""
        root = math.sqrt(self.rank) if self.rank_stabilized else self.rank
        return self.alpha / root


def lora_specs(specs: Tree, lora: Lora) -> Tree:
    """Declaration of the adapter for the kernels of `specs` that `targets` matches.

    Raises ValueError: no kernel matches.
    """
    out, kernels = {}, []
    for path, spec in flatten(specs).items():
        base, _, leaf = path.rpartition("/")
        if leaf not in ("kernel", "kernel_q"):
            continue
        kernels.append(base)
        if not base.startswith("layers/"):
            continue
        # Experts have no adapters here, nor has what chooses among them.
        if "expert" in spec.axes or base.endswith("/router"):
            continue
        if not matches(lora.targets, base):
            continue
        shape, split = quant.float_shape(path, spec), 1 + num_inputs(base)
        fan_in = math.prod(shape[1:split])
        out[f"{base}/a"] = ParamSpec(
            (shape[0], lora.rank, *shape[1:split]),
            (spec.axes[0], None, *spec.axes[1:split]),
            "normal",
            fan_in,
        )
        out[f"{base}/b"] = ParamSpec(
            (shape[0], lora.rank, *shape[split:]),
            (spec.axes[0], None, *spec.axes[split:]),
            "zeros",
        )
        if lora.dora:
            axes = (spec.axes[0], *spec.axes[split:])
            out[f"{base}/m"] = ParamSpec((shape[0], *shape[split:]), axes, "zeros")
    if not out:
        raise ValueError(
            f"LoRA targets {lora.targets!r} match no kernel; the kernels are {kernels}."
        )
    return unflatten(out)


def magnitudes(kernel: jax.Array, adapter: Tree, scale: float):
    """DoRA's m [o], and what it is divided by [o]: no gradient but that of m's change.

    kernel [i, o]; adapter: a [r, i], b [r, o], m [o].
    """
    fixed = jax.lax.stop_gradient((kernel, adapter["a"], adapter["b"]))
    w, a, b = (x.astype(jnp.float32) for x in fixed)
    # A TPU would round factors to bfloat16.
    dot = functools.partial(jnp.matmul, precision="highest")
    # Squares multiplied out: of A^T B itself, remat "dots" would keep every layer's.
    first = jnp.sum(w * w, axis=0)
    cross, own = (
        jnp.sum(b * dot(a, w), axis=0),
        jnp.sum(b * dot(dot(a, a.T), b), axis=0),
    )
    now = jnp.sqrt(jnp.maximum(first + 2 * scale * cross + scale**2 * own, 0))
    # An output without weights has no direction to scale.
    now = jnp.where(now == 0, 1, now)
    return jnp.sqrt(first) + adapter["m"].astype(jnp.float32), now


def matrices(kernel: jax.Array, adapter: Tree) -> tuple[jax.Array, Tree]:
    """A layer's kernel as [i, o], and its adapter likewise."""
    flat = {
        n: x.reshape(-1) if n == "m" else x.reshape(len(x), -1)
        for n, x in adapter.items()
    }
    return kernel.reshape(flat["a"].shape[1], -1), flat


def layer_of(flat: Tree, small: Tree, path: str, at: Any) -> tuple[jax.Array, Tree]:
    """Place `at` of the stacked kernel at `path` as floats [i, o], and its adapter.

    flat, small: parameters and adapter by path.
    """
    parts, adapter = (
        {n: tree[f"{path}/{n}"][at] for n in names if f"{path}/{n}" in tree}
        for tree, names in ((flat, quant.NAMES), (small, "abm"))
    )
    return matrices(quant.kernel(parts), adapter)


def merge(params: Tree, adapter: Tree, scale: float) -> Tree:
    """Parameters with the adapter in its kernels, in float32, and none in integers."""
    whole = quant.dequantize(params)
    flat, small, out = flatten(params), flatten(adapter), flatten(whole)
    for path in {p.rpartition("/")[0] for p in small}:
        kept = out.pop(f"{path}/kernel")
        merged = [
            _merged(*layer_of(flat, small, path, n), scale) for n in range(len(kept))
        ]
        kernel = jnp.stack(merged).reshape(kept.shape)
        out[f"{path}/kernel"] = kernel.astype(kept.dtype)
    return unflatten(out)


def _merged(kernel, adapter, scale):
    a, b = (adapter[n].astype(jnp.float32) for n in "ab")
    out = kernel + scale * jnp.matmul(a.T, b, precision="highest")
    if "m" not in adapter:
        return out
    m, norm = magnitudes(kernel, adapter, scale)
    return out * (m / norm)
