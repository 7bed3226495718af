"""LoRA: a second, small pytree beside frozen parameters.

Hu et al. 2021 (arXiv:2106.09685): W + scale * A^T B with A [r, in] random and B [r, out]
zero, so training starts at the base model; scale = alpha / rank, or alpha / sqrt(rank)
(rsLoRA, arXiv:2312.03732). The policy with its LoRA off is the reference model.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from alanything_jax.models.params import ParamSpec, Tree, flatten, matches, unflatten


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapter settings.

    Attributes:
      rank: inner size r.
      alpha: numerator of the scale.
      targets: pattern over parameter paths of kernels; `*` any characters, `|` or.
      rank_stabilized: scale by alpha / sqrt(rank) instead of alpha / rank.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "layers/attn/*|layers/mlp/*"
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """What multiplies A^T B."""
        root = math.sqrt(self.rank) if self.rank_stabilized else self.rank
        return self.alpha / root


# How many dims of a stacked kernel, after the layer dim, are its inputs.
_NUM_IN = {"o": 2}


def num_inputs(path: str) -> int:
    """Input dims of the kernel at a path such as `layers/attn/o`."""
    return _NUM_IN.get(path.rsplit("/", 1)[-1], 1)


def lora_specs(specs: Tree, lora: Lora) -> Tree:
    """Declaration of the adapter for the kernels of `specs` that `targets` matches.

    Raises ValueError: no kernel matches.
    """
    out = {}
    for path, spec in flatten(specs).items():
        base, _, leaf = path.rpartition("/")
        if leaf != "kernel" or not base.startswith("layers/"):
            continue
        # Experts have no adapters here, nor has what chooses among them.
        if "expert" in spec.axes or base.endswith("/router"):
            continue
        if not matches(lora.targets, base):
            continue
        split = 1 + num_inputs(base)
        fan_in = math.prod(spec.shape[1:split])
        out[f"{base}/a"] = ParamSpec(
            (spec.shape[0], lora.rank, *spec.shape[1:split]),
            (spec.axes[0], None, *spec.axes[1:split]),
            "normal",
            fan_in,
        )
        out[f"{base}/b"] = ParamSpec(
            (spec.shape[0], lora.rank, *spec.shape[split:]),
            (spec.axes[0], None, *spec.axes[split:]),
            "zeros",
        )
    if not out:
        kernels = [p[:-7] for p in flatten(specs) if p.endswith("/kernel")]
        raise ValueError(
            f"LoRA targets {lora.targets!r} match no kernel; the kernels are {kernels}."
        )
    return unflatten(out)


def merge(params: Tree, adapter: Tree, scale: float) -> Tree:
    """Parameters with `scale * A^T B` added to each adapted kernel, in float32."""
    flat, small = flatten(params), flatten(adapter)
    for path in {p.rpartition("/")[0] for p in small}:
        kernel = flat[f"{path}/kernel"]
        a, b = (small[f"{path}/{n}"].astype(jnp.float32) for n in ("a", "b"))
        delta = jnp.stack(
            [
                # A TPU would round the factors to bfloat16.
                jnp.tensordot(x, y, (0, 0), precision="highest")
                for x, y in zip(a, b, strict=True)
            ]
        )
        flat[f"{path}/kernel"] = (kernel + scale * delta).astype(kernel.dtype)
    return unflatten(flat)
