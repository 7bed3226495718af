"""The study: its arms' pairs, its figures by hand, and that it goes on where it stopped."""

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.data import store
from alanything_jax.pipelines import study_pairs, study_report
from alanything_jax.pipelines.study import Study
from alanything_jax.playground import oracle

CONFIG = Path(__file__).parents[2] / "configs/studies/llf.py"


def done():
    """Two seeds, four prompts."""

    def entry(t1, t0, pairs=None):
        tasks = ["t2i", "t2i", "i2t", "i2t"]
        return {"T1": t1, "T0": t0, "tasks": tasks, "pairs": pairs or {}}

    facts = [{"count": 8.0, "better": 0.5, "worse": 0.25}] * 2
    return {
        "base": [entry([0, 0, 1, 1], [1, 1, 1, 1]), entry([0, 1, 0, 1], [1, 1, 1, 1])],
        "llf": [
            entry([1, 0, 1, 1], [1, 1, 1, 1], facts[0]),
            entry([1, 1, 1, 1], [1, 0, 1, 1], facts[1]),
        ],
    }


def test_figures_by_hand():
    report = study_report.figures(done(), samples=200)
    assert report["base"]["T1"] == {
        "mean": 0.5,
        "gain": [0.0, 0.0, 0.0],
        "seeds": [0.0, 0.0],
    }
    llf = report["llf"]
    assert llf["T1"]["mean"] == 0.875 and llf["T1"]["seeds"] == [0.25, 0.5]
    value, low, high = llf["T1"]["gain"]
    assert value == 0.375 and 0 <= low < value < high <= 1
    assert llf["T0"]["gain"][0] == -0.125
    assert llf["modalities"]["t2i"][0] == 0.5 and llf["modalities"]["i2t"][0] == 0.25
    assert llf["pairs"] == {"count": 8.0, "better": 0.5, "worse": 0.25}


def test_table_and_figure_name_every_arm():
    report = study_report.figures(done(), samples=50)
    lines = study_report.table(report).splitlines()
    assert lines[2].startswith("| llf | 8 | 0.50 / 0.25 | 0.875 | +0.375 [")
    assert lines[3].startswith("| base |  |  | 0.500 |  | 1.000 |  |")
    picture = ET.fromstring(study_report.figure(report))
    said = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "llf" in said and "base" not in said
    dots = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == 2 and float(dots[0].get("cx")) > float(dots[1].get("cx"))


def test_an_unknown_arm_is_named():
    with pytest.raises(ValueError, match=r"no arms \['magic'\]; it has \['binary0'"):
        Study(llf=None, arms=("llf", "magic"))


def test_binary_pairs_err_as_often_as_asked(tmp_path):
    whole = dataclasses.replace(
        recipes.load(str(CONFIG)).llf, base=None, max_pairs=200, seed=5
    )
    facts = {}
    for error in (0.0, 0.4):
        path = study_pairs.binary(whole, tmp_path / str(error), print, error)
        facts[error] = study_pairs.facts(path)
    assert facts[0.0]["better"] == 1.0 and facts[0.0]["count"] == 200
    assert 0.25 < facts[0.4]["worse"] < 0.55
    path = study_pairs.binary(whole, tmp_path / "more", print, 0.0, times=2)
    assert len(store.read(path)) == 400


@pytest.mark.slow
def test_every_arm(tmp_path):
    _study(tmp_path, tuple(study_pairs.ARMS))


@pytest.mark.slow
def test_an_arm_and_resume(tmp_path):
    recipe, report = _study(tmp_path, ("onpolicy_oracle",))
    said = []
    again = alanything_jax.evaluate(recipe, tmp_path, said.append)
    assert again == report and not any("seed 0: " in line for line in said)
    ranked = store.read(tmp_path / "seed-0/onpolicy_oracle/pairs")
    for n in range(len(ranked)):
        example = ranked[n]
        scores = [oracle.rule(example, response) for response in example.responses]
        assert np.argmax(scores) == example.feedback.chosen and scores[0] != scores[1]


def _study(path, arms):
    recipe = dataclasses.replace(recipes.load(str(CONFIG)).tiny(), arms=arms)
    report = alanything_jax.evaluate(recipe, path, lambda line: None)
    assert set(report) == {"base", *arms}
    for name in ("report.json", "table.md", "figure.svg"):
        assert (path / name).is_file()
    for arm in arms:
        assert report[arm]["pairs"]["count"] > 0
    return recipe, report
