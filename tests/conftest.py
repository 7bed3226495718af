"""Eight CPU devices, one shared compilation cache, no hub: set before JAX is imported."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# With a thread a device, independent collectives of one program deadlock in XLA:CPU.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
root = Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs are mapped into memory, and Linux allows 65,530 maps a process.

    Past that XLA's compiler crashes (seen: 51,000 maps after 1,500 tests in one process).
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Reference log-probs and downloads of a test stay in its own folder."""
    monkeypatch.setenv("ALANYTHING_CACHE", str(tmp_path_factory.mktemp("cache")))
