"""The mesh: five named axes, size 1 unless asked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from alanything_jax.sharding.rules import MESH_AXES, PRESETS, Rules, axes_of, preset


def make(
    sizes: Sequence[str] = (),
    devices: Sequence[Any] | None = None,
    kind: AxisType = AxisType.Auto,
) -> jax.sharding.Mesh:
    """A mesh from `axis=size` strings; -1 takes the devices that are left.

    Devices of several TPU slices are put along `replica`, since slices are joined by the
    slower network: only gradients cross it.

    Args:
      devices: of a topology to compile for; None = those of this run.
      kind: Explicit makes an array's sharding part of its type; a step runs under both.

    Raises:
      ValueError: an unknown axis, or a product that is not a number of devices we have.
    """
    given = {}
    for item in sizes:
        axis, _, size = item.partition("=")
        fits = size == "-1" or (size.isdigit() and int(size))
        if axis not in MESH_AXES or not fits:
            raise ValueError(
                f"mesh {item!r}: write `axis=size` with an axis of {MESH_AXES} and a size "
                "of 1 or more, or -1 for the devices that are left."
            )
        given[axis] = int(size)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # XLA:CPU's pool has a thread a device, and independent collectives of one
        # program deadlock in it. It reads its size from here, before the first use.
        os.environ.setdefault("NPROC", "32")
    devices = jax.devices() if devices is None else list(devices)
    if -1 in given.values():
        known = math.prod(size for size in given.values() if size > 0)
        rest, over = divmod(len(devices), known)
        if over or list(given.values()).count(-1) > 1:
            raise ValueError(
                f"mesh {' '.join(sizes)}: {len(devices)} devices cannot be dealt out "
                f"evenly over axes of {known} together and one that takes the rest. Give "
                "one -1 at most, and sizes whose product divides the devices, such as "
                "fsdp=-1 alone."
            )
        given = {axis: rest if size < 0 else size for axis, size in given.items()}
    shape = tuple(given.get(axis, 1) for axis in MESH_AXES)
    wanted = math.prod(shape)
    if wanted > len(devices):
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} asks for {wanted} devices; "
            f"this process sees {len(devices)}. Lower an axis, or on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}."
        )
    kinds = (kind,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices[:wanted]})
    if slices > 1:
        if shape[0] % slices:
            raise ValueError(
                f"{slices} slices and replica={shape[0]}: give the mesh a replica axis "
                f"that is a multiple of {slices}, such as replica={slices}."
            )
        within = (shape[0] // slices, *shape[1:])
        across = (slices,) + (1,) * len(shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    else:
        # An axis may take a part of a torus' side: 16 of 8 x 8 chips.
        grid = mesh_utils.create_device_mesh(
            shape, devices[:wanted], allow_split_physical_axes=True
        )
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=kinds)


def check(mesh: jax.sharding.Mesh, rules: str) -> Rules:
    """The rules table of this name, if it uses every axis of the mesh.

    Raises ValueError: devices along an axis that no rule names would only repeat what
    others do.
    """
    table = preset(rules)
    used = {axis for name in table for axis in axes_of(name, table)}
    idle = [a for a in MESH_AXES if mesh.shape[a] > 1 and a not in {*used, "replica"}]
    if idle:
        other = [
            name
            for name, its in PRESETS.items()
            if all(any(a in axes_of(n, its) for n in its) for a in idle)
        ]
        raise ValueError(
            f"compute.mesh has {idle[0]}={mesh.shape[idle[0]]}, which compute.rules "
            f"{rules} does not use: its devices would repeat the others' work. Give "
            f"--compute.rules {' or '.join(other) or 'that use it'}, or leave the axis out."
        )
    return table


def rows(mesh: jax.sharding.Mesh, rules: Rules, asked: int) -> int:
    """Rows of a microbatch: as asked, or, of 0, one for each device that rows go to.

    Raises ValueError: the devices cannot share them evenly.
    """
    axes = axes_of("batch", rules)
    share = ways(mesh, axes)
    if asked % share:
        raise ValueError(
            f"rows_per_microbatch={asked} cannot be shared evenly by the {share} devices "
            f"of mesh axes {'+'.join(axes)}: give a multiple of {share}, or 0 for one row "
            "each."
        )
    return asked or share


def ways(mesh: jax.sharding.Mesh, axes: Sequence[str]) -> int:
    """Into how many parts these mesh axes cut a dim."""
    return math.prod(mesh.shape[axis] for axis in axes)
