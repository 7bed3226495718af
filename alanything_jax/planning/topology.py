"""TPU generations as their makers publish them, and topologies of chips to compile for."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU device, as JAX sees it: a chip, or of tpu7x one of its two.

    Attributes:
      peak_flops: bfloat16 FLOP/s. hbm_gib: what XLA may use, as the compiler reports it.
      hbm_bytes_per_s: memory bandwidth.
      link_bytes_per_s: of one link between chips, one way; a device's share of it.
      clock_hz: what turns the compiler's cycles into seconds; peak_flops over what the
        matrix units do in a cycle.
      flags: of the compiler, that let collectives run beside compute; the same as in
        tpu_scripts/presets, which a run gets them from.
      dcn_bytes_per_s: of a device's share of its host's network, one way.
      wraps: the side from which a flat torus' dim is a ring; 0 = of three dims: all are
        rings where all sides are multiples of 4.
      cores: devices of a chip.
    """

    peak_flops: float
    hbm_gib: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    clock_hz: float
    flags: tuple[str, ...]
    dcn_bytes_per_s: float = 6.25e9
    wraps: int = 0
    cores: int = 1


_WOVEN = (
    "xla_tpu_enable_async_collective_fusion=true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "xla_tpu_overlap_compute_collective_tc=true",
    "xla_enable_async_all_gather=true",
)
_ACROSS = (
    "xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "xla_tpu_data_parallel_opt_different_sized_ops=true",
)
_VMEM = ("xla_tpu_scoped_vmem_limit_kib=98304",)
_WHOLE = ("xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)
_SPARSE_CORE = (
    "xla_tpu_scoped_vmem_limit_kib=65536",
    "xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather=false",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=false",
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter=false",
    "xla_tpu_use_tc_device_shape_on_sc=true",
    "xla_sc_disable_megacore_partitioning=true",
)

# cloud.google.com/tpu/docs/system-architecture-tpu-vm, and jax-ml.github.io/scaling-book.
CHIPS = {
    # A v4 chip is one device ("megacore"), as libtpu runs it.
    "v4": Chip(275e12, 30.75, 1.228e12, 45e9, 1.05e9, _WOVEN + _ACROSS, 3.125e9),
    "v5e": Chip(
        197e12, 15.75, 0.819e12, 45e9, 1.5e9, _WOVEN + _ACROSS + _WHOLE, 3.125e9, 16
    ),
    "v5p": Chip(459e12, 95.74, 2.765e12, 90e9, 1.75e9, _VMEM + _WOVEN + _ACROSS),
    "v6e": Chip(
        918e12, 31.25, 1.64e12, 90e9, 1.75e9, _VMEM + _WOVEN + _WHOLE, 12.5e9, 16
    ),
    "tpu7x": Chip(
        1153.5e12, 94.75, 3.69e12, 45e9, 2.2e9, _SPARSE_CORE, 6.25e9, cores=2
    ),
}


# Compiling needs no chip and no lock on one; libtpu complains where it cannot guess these.
_NO_CHIP = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def devices(name: str, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology such as `v5p:4x4x4`, times `slices`.

    Raises ValueError: no such generation or shape; says what there is.
    """
    generation, _, shape = name.partition(":")
    dims = 3 if generation in ("v4", "v5p", "tpu7x") else 2
    example = f"{generation}:{'x'.join('4' * dims)}"
    if generation not in CHIPS:
        raise ValueError(
            f"topology {name!r}: {generation!r} is no TPU generation of {sorted(CHIPS)}. "
            "Write GENERATION:SHAPE, such as v5p:4x4x4, v6e:4x4 or v5e:1x1."
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"topology {name!r} has no shape: write it as {example}.")
    if slices < 1:
        raise ValueError(f"--slices {slices}: give 1 or more.")
    sizes = [int(size) for size in shape.split("x")]
    if len(sizes) != dims:
        raise ValueError(
            f"topology {name!r}: {generation} lies in {dims} dimensions, as {example}."
        )
    for variable, value in _NO_CHIP.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    more: dict[str, Any] = {}
    if math.prod(sizes) == 1:
        more["chips_per_host_bounds"] = [1, 1, 1]
    if slices > 1:
        more["num_slices"] = slices
    if generation == "v4":
        more["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"the TPU compiler knows no topology {name!r}: {str(error)[:300]}. Take whole "
            f"hosts of 4 chips or a power of two a side, such as {example}."
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"the TPU compiler is not here ({error}): pip install 'jax[tpu]'."
        ) from error
    return CHIPS[generation], list(found.devices)


def accelerator(name: str) -> str:
    """What Google Cloud calls a topology: `v5p:4x4x4` -> `v5p-128`.

    v5e and v6e are counted in chips, the others in cores, two a chip.
    """
    generation, _, shape = name.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    flat = generation in ("v5e", "v6e")
    label = "v5litepod" if generation == "v5e" else generation
    return f"{label}-{chips if flat else 2 * chips}"


def collective_seconds(
    kind: str, num_bytes: int, group: Sequence[Any], chip: Chip, name: str
) -> float:
    """How long a collective takes over a group of devices, at full bandwidth.

    A gather or scatter over a ring moves (ways - 1) / ways of the whole array past each
    device, both ways round, over every dim of the torus that the devices lie along; a sum
    is a scatter and a gather; an all-to-all a quarter of a gather. A dim that is no ring,
    or not all of it, has half the bandwidth. Between slices goes what is left of the
    array once each slice has dealt it out over its own devices.
    """
    if kind == "collective-permute":
        far = len({_slice(device) for device in group}) > 1
        return num_bytes / (chip.dcn_bytes_per_s if far else chip.link_bytes_per_s)
    if len(group) <= 1:
        return 0.0
    slices = len({_slice(device) for device in group})
    ways = len(group) // slices
    share = {"all-reduce": 2.0, "all-to-all": 0.25}.get(kind, 1.0)
    between = num_bytes / ways * (slices - 1) / slices / chip.dcn_bytes_per_s
    if kind == "all-to-all":
        between /= slices
    within = num_bytes * (ways - 1) / ways / (_bandwidth(group, chip, name) or 1.0)
    return share * within + (2.0 if kind == "all-reduce" else 1.0) * between


def _bandwidth(group, chip, name):
    """Bytes a second past each device of a group within a slice; 0 for one chip."""
    sides = [int(side) for side in name.partition(":")[2].split("x")]
    whole = all(side % 4 == 0 for side in sides)
    total = 0.0
    for dim, side in enumerate(sides):
        along = len({device.coords[dim] for device in group})
        ring = side >= chip.wraps if chip.wraps else whole
        if along > 1:
            total += chip.link_bytes_per_s * (2 if ring and along == side else 1)
    # Devices of one chip: no slower than a link, and no figure is published.
    return total or chip.link_bytes_per_s * chip.cores


def _slice(device):
    return getattr(device, "slice_index", 0)
