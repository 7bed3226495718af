"""The whole path in little; `.ci/run` repeats it on the newest JAX/Flax pair."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment, hub
from alanything_jax.cli.main import main
from alanything_jax.hub.verify import verify

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[1]


def shrunk(steps):
    """The demo's recipe, tiny, `steps` long."""
    recipe = experiment.tiny(experiment.load(ROOT / "configs" / "dpo_smollm2.py"))
    train = dataclasses.replace(recipe.train, steps=steps, checkpoint_every=2)
    return dataclasses.replace(recipe, train=train)


def test_train_evaluate_export_verify_generate(tmp_path):
    run = alanything_jax.train(shrunk(4), tmp_path / "run", say=lambda line: None)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines[1:])

    report = alanything_jax.evaluate(shrunk(4), run.path, say=lambda line: None)
    assert 0.0 <= report["aligned"]["accuracy"][0] <= 1.0

    out = alanything_jax.export(run.path, tmp_path / "out")
    assert not [check for check in verify(out) if check.passed is False]

    bundle = hub.load(str(out))
    (completions,) = alanything_jax.generate(bundle, ["say k"], max_new_tokens=4)
    assert np.isfinite(completions[0].logp)


def test_every_verb_answers_help(capsys):
    assert main(["--help"]) == 0
    assert "alanything train CONFIG" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
