"""The notebooks for Colab and Kaggle: kept clean, and run in little on this CPU."""

import importlib.metadata
import re
import sys

import nbclient
import nbformat
import pytest

from alanything_jax.data.fetch import cache_dir
from tests.tpu_scripts.conftest import ROOT

FOLDER = ROOT / "tpu_scripts" / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SLOW = pytest.mark.slow
RUNS = [
    pytest.param("align_dpo", 1, marks=SLOW),
    pytest.param("align_dpo", 8, marks=SLOW),
    pytest.param("llf_playground", 1, marks=SLOW),
    pytest.param("llf_playground", 8, marks=SLOW),
    pytest.param("export_chat", 1, marks=SLOW),
]


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def install_cell(notebook):
    [cell] = [source for source in code(notebook) if '"pip"' in source]
    return cell


def requirements(text):
    """Package, without its extras -> pinned version or ""."""
    found = re.findall(r"([A-Za-z][\w.-]*)(?:\[\w+\])?(==|>=)([\d.]+)", text)
    return {
        name.lower().replace("_", "-"): version if sign == "==" else ""
        for name, sign, version in found
    }


def shown(notebook):
    """What a reader sees, as one text."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    texts = [out.get("text") or str(out.get("data", "")) for out in outputs]
    return "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_clean_and_for_a_tpu(path):
    notebook = read(path.stem)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    meta = notebook.metadata
    assert meta["accelerator"] == "TPU" and meta["colab"]["gpuType"] == "V5E1"
    assert meta["colab"]["provenance"] == [] and meta["colab"]["toc_visible"]
    assert meta["kernelspec"] == {"display_name": "Python 3", "name": "python3"}
    for place in (
        "colab.research.google.com/github/OWNER/alanything_jax/blob/main",
        "kaggle.com/kernels/welcome?src=https://github.com/OWNER/alanything_jax/blob/main",
    ):
        link = f"{place}/tpu_scripts/colab/{path.name}"
        assert link in notebook.cells[0].source
    assert code(notebook)[0].startswith("# @title Settings")


def test_one_install_cell_the_same_in_all():
    """It pins what the tests run with and holds all that setup.py asks for."""
    [cell] = {install_cell(read(path.stem)) for path in NOTEBOOKS}
    wanted = requirements(cell)
    common = (ROOT / "tpu_scripts" / "common.sh").read_text()
    assert wanted["jax"] == re.search(r"JAX_VERSION:=([\d.]+)", common)[1]
    setup = (ROOT / "setup.py").read_text()
    asked = setup[setup.index("install_requires") : setup.index("extras_require")]
    assert not requirements(asked).keys() - wanted.keys()
    if sys.version_info[:2] == (3, 11):
        pins = {name: version for name, version in wanted.items() if version}
        assert pins == {name: importlib.metadata.version(name) for name in pins}


@pytest.mark.parametrize("name, devices", RUNS)
def test_runs_in_little(name, devices, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOKE", "1")
    flag = f"--xla_force_host_platform_device_count={devices}"
    monkeypatch.setenv("XLA_FLAGS", flag if devices > 1 else "")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for variable in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(variable, raising=False)
    notebook = read(name)
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=place
    )
    client.execute()
    text, run = shown(notebook), tmp_path / "runs"
    assert f"cpu: {devices} x cpu" in text and "WARNING" not in text
    assert not (cache_dir() / "pypi").exists(), "a rehearsal downloads nothing"
    if name == "llf_playground":
        assert "<iframe srcdoc" in text and "data:image/png" in text
        assert (run / name / "report.html").is_file()
    elif name == "align_dpo":
        assert "implicit reward accuracy" in text and "<th>before<th>after" in text
        assert (run / name / "evaluation.json").is_file()
    else:
        assert "pass      hashes" in text and "FAIL" not in text
        assert "nothing is uploaded" in text and "assistant> " in text
        assert (run / "align_dpo" / "adapter" / "adapter_config.json").is_file()
