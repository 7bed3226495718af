"""Every preset's flags, given to the TPU compiler that setup_vm.sh installs."""

import importlib.util
import subprocess
import sys

import pytest

from tests.tpu_scripts.conftest import ROOT, without

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "v7x": "tpu7x:2x2x1",
}
COMPILE = """
import sys, jax, numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
devices = get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
rows = NamedSharding(Mesh(np.array(devices), "x"), P("x"))
x = jax.ShapeDtypeStruct((8 * len(devices), 128), np.float32, sharding=rows)
jax.jit(lambda x: (x @ x.T).sum()).lower(x).compile()
print("compiled for", devices[0].device_kind)
"""


def compile_with(generation, more=""):
    """A collective compiled for a slice, with the preset as a worker would read it."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install 'jax[tpu]' (extra: tpu)")
    env = without("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR") | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    preset = f"tpu_scripts/presets/{generation}.env"
    read = f'set -a; . {preset}; LIBTPU_INIT_ARGS+="{more}"; exec "$@"'
    return subprocess.run(
        [
            "bash",
            "-c",
            read,
            "bash",
            sys.executable,
            "-c",
            COMPILE,
            TOPOLOGIES[generation],
        ],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
    )


def test_every_preset_is_here():
    found = {path.stem for path in (ROOT / "tpu_scripts/presets").glob("*.env")}
    assert found == set(TOPOLOGIES)


@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_the_compiler_takes_the_preset(generation):
    done = compile_with(generation)
    assert "compiled for TPU" in done.stdout, done.stderr


def test_it_would_not_take_an_unknown_flag():
    done = compile_with("v6e", more=" --xla_tpu_no_such_flag=true")
    assert done.returncode and "xla_tpu_no_such_flag" in done.stderr
