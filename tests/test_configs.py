"""Every recipe of the repository loads, and those for `train` run in little."""

from pathlib import Path

import pytest

from alanything_jax import experiment as recipes
from alanything_jax.cli.main import main

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_loads_and_is_named(name):
    recipe = recipes.load(str(ROOT / name))
    assert recipe.name and recipes.to_json(recipe)


def test_a_reward_model_of_any_mixture_trains(tmp_path):
    argv = ["train", str(ROOT / "reward_playground.py"), "--tiny"]
    assert main([*argv, "--train.steps", "2", "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    "name", ["vqa_easy.py", pytest.param("vqa_easy_dpo.py", marks=pytest.mark.slow)]
)
def test_a_model_with_a_tower_trains(name, tmp_path):
    argv = ["train", str(ROOT / name), "--tiny", "--run-dir", str(tmp_path / "run")]
    assert main([*argv, "--train.steps", "2"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_answers_are_evaluated(tmp_path):
    argv = ["evaluate", str(ROOT / "vqa_easy_eval.py"), "--tiny"]
    assert main([*argv, "--run-dir", str(tmp_path)]) == 0
    assert (tmp_path / "report.json").is_file()
