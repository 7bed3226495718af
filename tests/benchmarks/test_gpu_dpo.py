"""The benchmark for cards: all of its code, in little, on a CPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_dpo.py"
TRL = importlib.util.find_spec("trl") is not None


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_dpo

    return gpu_dpo


def test_without_a_card_it_says_what_it_needs():
    # No PATH: nvidia-smi is found nowhere, whatever this machine has.
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | {"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    for word in (
        "no NVIDIA card",
        "nothing was measured",
        "jax[cuda13]",
        "torch",
        "trl",
    ):
        assert word in done.stdout


def visible_pairs(*lengths):
    """By counting: what each token of a prompt and its answers sees."""
    prompt, *answers = lengths
    seen = sum(n + 1 for n in range(prompt))
    return seen + sum(prompt + n + 1 for size in answers for n in range(size))


@pytest.mark.slow
def test_the_whole_script_in_little(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--work", tmp_path, "--peak", "2"]
        + ["--json", tmp_path / "out.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'attention': 'cudnn'" in done.stdout and "NVIDIA cards" in done.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    (case,) = report["cases"]
    assert case["name"] == "even/blockwise"
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as file:
        number = sum(np.prod(file.get_slice(k).get_shape()) for k in file.keys())
    # 2 layers of 4 heads of 8: scores and sums of values, at two FLOPs a pair.
    scores = 2 * 2 * 4 * 8
    work = 6 * (number * 48 + scores * visible_pairs(16, 16, 16))
    own = 6 * (number * 64 + scores * 2 * visible_pairs(16, 16))
    assert case["ours"] > 0 and case["repeats"] == [case["ours"]]
    assert case["mfu"] == pytest.approx(case["ours"] / 48 * work / 2e12)
    if TRL:
        assert case["ratio"] == pytest.approx(case["ours"] / case["peer"])
        pairs_a_second = case["peer"] / 48
        assert case["peer_mfu"] == pytest.approx(pairs_a_second * work / 2e12)
        assert case["peer_mfu_as_run"] == pytest.approx(pairs_a_second * own / 2e12)
        assert 0 <= case["equality"]["logp_gap"] < 1e-3


def test_without_trl_ours_is_measured_and_it_is_said(script, monkeypatch, capsys):
    def run(side, folder, name, settings, tiny):
        if side == "trl" or settings["attention"] == "cudnn":
            raise RuntimeError("No module named 'trl'")
        return {
            "rate": 2.0,
            "card_peak_mib": 7,
            "versions": {},
            "losses": [],
            "logps": [],
        }

    monkeypatch.setattr(script, "run", run)
    options = argparse.Namespace(
        **{"tiny": True, "size": "tiny", "repeats": 3, "work": Path("."), "peak": None},
        **{"groups": 4, "batch": 2, "steps": 3, "weights": "float32"},
    )
    (case,) = script.compare(options, "even", (16, 16))
    assert case["name"] == "even/blockwise"
    assert (case["ours"], case["peer"], case["ratio"]) == (2.0 * 48, None, None)
    assert "| not run |" in script.line(case)
    said = capsys.readouterr().out
    assert "No module named 'trl'" in said and "TRL's side is not measured" in said


def test_a_difference_stops_it(script):
    one = {"losses": [0.69], "logps": [(-10.0, -20.0)]}
    script.dpo_vs_trl.gaps(one, one, 1)
    for other in ({"losses": [0.70]}, {"logps": [(-10.0, -20.1)]}):
        with pytest.raises(RuntimeError, match="the sides differ"):
            script.dpo_vs_trl.gaps(one, one | other, 1)
