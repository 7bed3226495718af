"""Loading onto a mesh: the same weights, and never more in memory than a piece."""

import tracemalloc

import jax
import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from alanything_jax.hub.load import piece
from alanything_jax.hub.source import tiny_bundle
from alanything_jax.models.families import common
from alanything_jax.models.params import flatten
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import rules
from alanything_jax.training.reference import fingerprint


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return hub.save(tiny_bundle("qwen2"), tmp_path_factory.mktemp("hub") / "model")


def test_on_a_mesh_the_same_weights_and_fingerprint(directory):
    mesh = meshes.make(("fsdp=4", "tensor=2"))
    table = rules.FSDP_TENSOR
    placed = hub.load(
        directory, place=lambda s: rules.named(mesh, s.shape, s.axes, table)
    )
    whole = hub.load(directory)
    one, other = flatten(whole.params), flatten(placed.params)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path])
    assert not other["layers/mlp/up/kernel"].sharding.is_fully_replicated
    assert fingerprint(one) == fingerprint(other)
    changed = one | {"final_norm/scale": one["final_norm/scale"].at[3].add(1e-6)}
    assert fingerprint(changed) != fingerprint(one)
    table = one["embed/text/table"]
    swapped = one | {"embed/text/table": table.at[:2].set(table[1::-1])}
    assert fingerprint(swapped) != fingerprint(one)


def test_a_piece_costs_no_more_memory_than_itself(tmp_path):
    """A stacked kernel of 32 MiB, of which a host asks for an eighth."""
    rng = np.random.default_rng(0)
    layers, out, width = 4, 2048, 1024
    disk = {
        f"layer.{n}": rng.normal(size=(out, width)).astype(np.float32)
        for n in range(layers)
    }
    files.write(tmp_path, disk)
    located = files.locate(tmp_path)
    parts = [
        (common.Tensor("k", (n,), (out, width), 1), f"layer.{n}") for n in range(layers)
    ]
    shape, index = (layers, width, out), (slice(None), slice(256, 384), slice(None))

    def read(name):
        return files.read(*located[name])

    tracemalloc.start()
    got = piece(parts, read, index, shape, np.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    want = np.stack([disk[f"layer.{n}"].T for n in range(layers)])[index]
    np.testing.assert_array_equal(got, want)
    assert peak < 1.1 * got.nbytes, peak
    assert jax.device_count() == 8


@pytest.mark.parametrize("family", ["janus", "emu3"])
def test_a_family_without_a_tiny_model_is_refused(family):
    """It was a random model of seven billion parameters, and the machine's memory."""
    with pytest.raises(ValueError, match=f"there is no tiny:{family}"):
        tiny_bundle(family)
