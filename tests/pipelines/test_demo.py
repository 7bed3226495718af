"""The demo in little: every stage, the page, the export; and that it goes on."""

import json

import pytest

from alanything_jax.cli.main import main
from alanything_jax.hub.verify import verify


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", "--tiny", "--run-dir", str(path)]) == 0
    return path


def test_report_has_the_figures_of_the_page(run):
    report = json.loads((run / "report.json").read_text())
    for temperature in ("T0", "T1"):
        found = report[temperature]
        for name in ("base", "aligned", "gain", "binary", "binary_gain"):
            mean, low, high = found[name]
            assert low <= mean <= high
        assert set(found["modalities"]) == {
            "t2i",
            "i2t",
            "t2a",
            "a2t",
            "t2v",
            "v2t",
            "ti2ti",
            "choose",
        }
        for figures in found["modalities"].values():
            assert {"base", "aligned", "gain"} <= set(figures)
    assert [entry["stage"] for entry in report["yield"]] == [
        "sample",
        "critique",
        "refine",
        "verify",
    ]
    assert all(passed is not False for _, passed, _ in report["verify"])


def test_page_and_export(run):
    page = (run / "report.html").read_text()
    assert (
        "<svg" in page and "data:image/" in page and "://" not in page.split("<main")[0]
    )
    assert not [check for check in verify(run / "export") if check.passed is False]
    assert (run / "export" / "anything.json").exists()


def test_the_same_command_trains_nothing_again(run, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("metrics.jsonl")}
    assert main(["demo", "--tiny", "--run-dir", str(run)]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == (
        f"exported model: {run / 'export'}"
    )
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("metrics.jsonl")}
