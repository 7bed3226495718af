"""Logical axis names to mesh axes: a table, so that models never name a mesh axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import NamedSharding, PartitionSpec

MESH_AXES = ("replica", "fsdp", "tensor", "sequence", "expert")

Rules = Mapping[str, str | tuple[str, ...] | None]

# `batch` and `length` are dims of the data; all others are dims of parameters.
FSDP: Rules = {"batch": ("replica", "fsdp"), "embed": "fsdp"}
FSDP_TENSOR: Rules = {
    **FSDP,
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
# Rows are cut along their length: long contexts of many media.
SEQUENCE: Rules = {**FSDP_TENSOR, "length": "sequence"}
# Experts are dealt out over an axis that deals out rows, too.
EXPERT: Rules = {**FSDP, "batch": ("replica", "fsdp", "expert"), "expert": "expert"}
PRESETS: Mapping[str, Rules] = {
    "fsdp": FSDP,
    "fsdp_tensor": FSDP_TENSOR,
    "sequence": SEQUENCE,
    "expert": EXPERT,
}


def preset(name: str) -> Rules:
    """A rules table by name; raises ValueError naming the known ones."""
    if name not in PRESETS:
        raise ValueError(f"sharding rules {name!r}: choose one of {sorted(PRESETS)}.")
    return PRESETS[name]


def axes_of(axis: str, rules: Rules) -> tuple[str, ...]:
    """The mesh axes over which one logical axis is cut; none is the empty tuple."""
    mapped = rules.get(axis)
    return (mapped,) if isinstance(mapped, str) else tuple(mapped or ())


def constrain(x: jax.Array, axes: tuple[str | None, ...], rules: Rules | None):
    """`x`, held to its place on the mesh that is set; on one device nothing to hold.

    Without it the compiler may choose to gather activations instead of weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, rules))


def partition(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Mesh axes for the logical axes of one array.

    Raises ValueError: two of its dims would land on the same mesh axis.
    """
    chosen = [rules.get(axis) if axis else None for axis in axes]
    flat = [m for c in chosen if c for m in ((c,) if isinstance(c, str) else c)]
    if len(set(flat)) != len(flat):
        raise ValueError(
            f"logical axes {axes} map to mesh axes {chosen}, which uses one mesh axis "
            "twice. Give the rules table another mesh axis for one of them."
        )
    return PartitionSpec(*chosen)


def named(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], axes: tuple, rules: Rules
) -> NamedSharding:
    """The sharding of one array on a mesh; a dim that does not divide is an error."""
    spec = partition(axes, rules)
    for size, axis, mapped in zip(shape, axes, spec, strict=True):
        names = (mapped,) if isinstance(mapped, str) else (mapped or ())
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            raise ValueError(
                f"dim {axis!r} has {size} entries, which {ways} devices on mesh axis "
                f"{'+'.join(names)} cannot share evenly. Change that mesh axis to a "
                f"divisor of {size}, or map {axis!r} to None in the rules."
            )
    return NamedSharding(mesh, spec)
