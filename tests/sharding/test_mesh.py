"""Meshes of sizes as they are written, and of what TPUs they can be made."""

import jax
import pytest

from alanything_jax.planning import topology
from alanything_jax.sharding import mesh as meshes


@pytest.mark.parametrize(
    "sizes, said",
    [
        (("fsdp=0",), "fsdp=0.*a size of 1 or more, or -1"),
        (("fsdp=-2",), "fsdp=-2.*a size of 1 or more, or -1"),
        (("rows=2",), "an axis of"),
        # A recipe for 16 chips on these 8: nothing is left for replica.
        (
            ("replica=-1", "fsdp=16"),
            "8 devices cannot be dealt out evenly over axes of 16",
        ),
        (("replica=-1", "fsdp=3"), "evenly over axes of 3"),
        (("replica=-1", "fsdp=-1"), "one -1 at most"),
        (("fsdp=16",), "asks for 16 devices"),
    ],
)
def test_sizes_that_are_no_mesh_of_these_devices(sizes, said):
    with pytest.raises(ValueError, match=said):
        meshes.make(sizes, jax.devices()[:8])


@pytest.mark.parametrize(
    "name, slices, sizes",
    [
        ("v6e:8x8", 1, ("replica=-1", "fsdp=16")),
        ("v6e:4x4", 1, ("fsdp=8", "tensor=2")),
        ("v5p:4x4x4", 1, ("fsdp=32", "tensor=2")),
        ("v5e:4x4", 2, ("replica=4", "fsdp=8")),
    ],
)
def test_an_axis_may_take_a_part_of_a_side(name, slices, sizes):
    pytest.importorskip("libtpu", reason="libtpu is not here: pip install 'jax[tpu]'")
    devices = topology.devices(name, slices)[1]
    mesh = meshes.make(sizes, devices)
    assert mesh.size == len(devices) == len(set(mesh.devices.flat))
    for item in sizes:
        axis, _, size = item.partition("=")
        assert size in ("-1", str(mesh.shape[axis]))
