"""The notebooks for Colab and Kaggle: kept clean, and run in little on this CPU."""

import importlib.metadata
import json
import re
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import nbclient
import nbformat
import pytest

from alanything_jax.checkpoint import manager
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


@pytest.mark.parametrize("name", ["align_dpo", "export_chat"])
def test_figures_are_those_of_the_stored_plans(name):
    """Those of docs/plans, which benchmarks/plans.py makes."""
    text = read(name).cells[0].source
    tied = []
    for chip, hbm, limit, speed in re.findall(
        r"^\| (v\d\w-\d) \(.+?\) \| ([\d.]+) of ([\d.]+).*? \| ([\d,]+) \|$", text, re.M
    ):
        topology = {"v5e-1": "v5e-1x1", "v6e-1": "v6e-1x1", "v5e-8": "v5e-2x4"}[chip]
        path = ROOT / "docs" / "plans" / f"colab_dpo@{topology}.json"
        if not path.exists():
            continue
        plan = json.loads(path.read_text())
        assert not plan["options"] and plan["fits"]
        figures = plan["hbm_gib_per_chip"], plan["hbm_limit_gib"]
        assert (hbm, limit) == tuple(f"{figure:.2f}" for figure in figures), chip
        assert speed == f"{round(plan['tokens_per_s_per_chip'], -2):,.0f}", chip
        tied.append(chip)
    assert {"v5e-1", "v6e-1"} <= set(tied)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_work_without_an_entry_point(path):
    """The install cell only puts the clone on the path of Python."""
    assert not re.search(r"[`!]alanything ", path.read_text())


def run_cell(name, holds, devices=1, **names):
    """The one cell that holds some text, run as on TPU chips; its names afterwards."""
    [source] = [source for source in code(read(name)) if holds in source]
    jax = SimpleNamespace(device_count=lambda: devices, default_backend=lambda: "tpu")
    space = {"jax": jax, "ROOT": ROOT, "SMOKE": False, "RUN_NAME": "run"} | names
    exec(source, space)
    return space


@pytest.mark.parametrize(
    "model, devices, rows", [("", 1, 8), ("owner/larger", 1, 2), ("owner/larger", 8, 8)]
)
def test_another_model_gets_fewer_rows_on_one_chip(model, devices, rows, tmp_path):
    """Of 360M parameters eight rows would not fit a v5e."""
    fields = {"BETA": 0.2, "LEARNING_RATE": 1e-4, "EPOCHS": 1, "MODEL": model}
    space = run_cell("align_dpo", "if MODEL:", devices, RUNS=tmp_path, **fields)
    recipe = space["recipe"]
    assert recipe.compute.rows_per_microbatch == rows and recipe.algorithm.beta == 0.2
    assert model in ("", recipe.model.path)


def test_export_trains_again_unless_there_is_a_complete_checkpoint(tmp_path):
    """An interrupted short run leaves its folder, and perhaps half a checkpoint."""
    calls = []
    train = SimpleNamespace(train=lambda recipe, run: calls.append(run))
    for saved, trains in ((None, True), ("nothing", True), (1, False), (2, False)):
        if saved == "nothing":
            (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        elif saved:
            with manager.manager(tmp_path / "run" / "checkpoints", keep=3) as made:
                manager.save(made, saved, {"x": jnp.ones(2)})
                manager.wait(made, saved)
        run_cell("export_chat", "RUN = ", RUNS=tmp_path, alanything_jax=train)
        assert calls == ([tmp_path / "run"] if trains else []), saved
        calls.clear()
    with manager.manager(tmp_path / "run" / "checkpoints", keep=3) as made:
        assert len(made.checkpoints) == 2  # a look removes none


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
    if name == "export_chat":  # what a run leaves that was interrupted at once
        (tmp_path / "runs" / "align_dpo").mkdir(parents=True)
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
