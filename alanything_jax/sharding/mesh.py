"""The mesh: five named axes, size 1 unless asked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import jax

from alanything_jax.sharding.rules import MESH_AXES


def make(sizes: Sequence[str] = ()) -> jax.sharding.Mesh:
    """A mesh from `axis=size` strings; -1 takes the devices that are left.

    Raises:
      ValueError: an unknown axis, or a product that is not a number of devices we have.
    """
    given = {}
    for item in sizes:
        axis, _, size = item.partition("=")
        if axis not in MESH_AXES or not size.lstrip("-").isdigit():
            raise ValueError(
                f"mesh {item!r}: write `axis=size` with an axis of {MESH_AXES}."
            )
        given[axis] = int(size)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # XLA:CPU's pool has a thread a device, and independent collectives of one
        # program deadlock in it. It reads its size from here, before the first use.
        os.environ.setdefault("NPROC", "32")
    devices = jax.devices()
    if -1 in given.values():
        known = math.prod(size for size in given.values() if size > 0)
        rest = len(devices) // known
        given = {axis: rest if size < 0 else size for axis, size in given.items()}
    shape = tuple(given.get(axis, 1) for axis in MESH_AXES)
    wanted = math.prod(shape)
    if wanted > len(devices):
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} asks for {wanted} devices; "
            f"this process sees {len(devices)}. Lower an axis, or on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}."
        )
    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices[:wanted])
