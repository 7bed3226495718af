"""Parameters declared once; initial values, abstract shapes and axes follow from it.

A model's parameters are a nested dict of arrays. Its declaration is the same dict with
a `ParamSpec` at each leaf, so everything else is a tree map.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter array.

    Attributes:
      shape: its dims.
      axes: the logical name of each dim, mapped to mesh axes by `sharding.rules`.
      init: "normal" (scaled by 1/sqrt(fan_in)), "zeros" or "ones".
      fan_in: inputs of one output, for "normal".
      dtype: where it is not that of the parameters.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"
    fan_in: int = 1
    dtype: str = ""

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"{self.shape} has other rank than its axes {self.axes}")


def linear(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    num_in: int = 1,
    lead: tuple[int, ...] = (),
    bias: bool = True,
) -> dict[str, ParamSpec]:
    """A kernel whose first `num_in` dims are inputs, and its bias; stacked by `lead`."""
    named, fan_in = ("layers",) * len(lead), math.prod(shape[:num_in])
    out = {"kernel": ParamSpec((*lead, *shape), (*named, *axes), "normal", fan_in)}
    if bias:
        shape, axes = (*lead, *shape[num_in:]), (*named, *axes[num_in:])
        out["bias"] = ParamSpec(shape, axes, "zeros")
    return out


def layer_norm(width: int, lead: tuple[int, ...] = ()) -> dict[str, ParamSpec]:
    """Scale and bias of a LayerNorm; stacked by `lead`."""
    shape, axes = (*lead, width), (*["layers"] * len(lead), "embed")
    return {
        "scale": ParamSpec(shape, axes, "ones"),
        "bias": ParamSpec(shape, axes, "zeros"),
    }


def is_spec(leaf: Any) -> bool:
    """Whether a tree leaf is a declaration."""
    return isinstance(leaf, ParamSpec)


def abstract(specs: Tree, dtype: Any = jnp.float32) -> Tree:
    """The declared tree as `jax.ShapeDtypeStruct`s: no memory is touched."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype),
        specs,
        is_leaf=is_spec,
    )


def init(specs: Tree, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Random initial values. Each leaf's key comes from its path, not from its turn."""
    flat = flatten(specs)
    values = {}
    for number, (path, spec) in enumerate(sorted(flat.items())):
        if spec.init == "normal":
            noise = jax.random.normal(jax.random.fold_in(key, number), spec.shape)
            values[path] = (noise / math.sqrt(spec.fan_in)).astype(dtype)
        else:
            values[path] = {"zeros": jnp.zeros, "ones": jnp.ones}[spec.init](
                spec.shape, dtype
            )
    return unflatten(values)


def flatten(tree: Tree) -> dict[str, Any]:
    """`{"a": {"b": x}}` -> `{"a/b": x}`."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def matches(pattern: str, path: str) -> bool:
    """Whether a glob-like pattern (`*` any characters, `|` or) covers the whole path."""
    options = (re.escape(part).replace(r"\*", ".*") for part in pattern.split("|"))
    return any(re.fullmatch(option, path) for option in options)


def count(tree: Tree) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
