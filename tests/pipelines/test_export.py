"""A run becomes a Hugging Face directory: whole, merged, as an adapter, as a scorer."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.algorithms.base import scores_trained
from alanything_jax.hub.source import tiny_bundle
from alanything_jax.hub.verify import verify
from alanything_jax.models.families import FAMILIES

FOUND = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
# The recipes that `alanything train` takes; others have tests of their own.
CONFIGS = [p for p in FOUND if isinstance(recipes.load(p), recipes.Experiment)]
# Small, the recipes of one family and algorithm differ little.
FAST = ("dpo_llama3_8b", "critique_qwen3_8b", "reward_anything_8b")

SLOW = ("grpo_playground", "simpo_smollm2", "kto_smollm2", "sft_smollm2")
SLOW += ("vqa_easy", "vqa_easy_dpo", "colab_dpo", "reward_smollm2", "distill_smollm2")
SLOW += ("sft_playground", "reward_playground")


def param(path):
    slow = "_8b" in path.stem and path.stem not in FAST
    slow |= path.stem in SLOW
    return pytest.param(path, id=path.stem, marks=pytest.mark.slow if slow else ())


QUIET = {"say": lambda line: None}


def tiny(path, steps=3):
    recipe = recipes.tiny(recipes.load(path))
    train = dataclasses.replace(recipe.train, steps=steps, tensorboard=False)
    # An adapter merged into bfloat16 weights is rounded: nothing to compare to 1e-4.
    model = dataclasses.replace(recipe.model, param_dtype="float32")
    return dataclasses.replace(recipe, train=train, model=model)


@pytest.fixture(scope="module", params=map(param, CONFIGS))
def run(request, tmp_path_factory):
    """Every recipe there is, trained tiny, with its export."""
    recipe = tiny(request.param)
    folder = tmp_path_factory.mktemp(request.param.stem)
    trained = alanything_jax.train(recipe, folder / "run", **QUIET)
    return recipe, trained, alanything_jax.export(trained.path, folder / "out")


def scoring(recipe):
    return scores_trained(recipe.algorithm)


def architecture(recipe):
    family = FAMILIES["llava" if recipe.model.vision else recipe.model.family]
    return family.classifier if scoring(recipe) else family.architecture


def theirs(recipe, directory):
    (name,) = json.loads((directory / "config.json").read_text())["architectures"]
    assert name == architecture(recipe)
    kind = getattr(transformers, name)
    model, info = kind.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


IDS = np.arange(5, 17)[None]


def outputs(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def test_every_recipe_trains_and_its_export_is_sound(run):
    recipe, trained, out = run
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    # What learns from its own answers holds no data out, and begins at step 1.
    first = 0 if recipe.rollout is None else 1
    assert [line["step"] for line in lines] == [*range(first, 4)]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    checks = verify(out)
    assert checks and all(check.passed for check in checks), checks
    theirs(recipe, out)
    assert "alanything" in (out / "README.md").read_text()


def test_the_export_is_the_trained_model(run):
    recipe, trained, out = run
    from alanything_jax.training.restore import load_run

    bundle = load_run(trained.path).merged()
    inputs = bundle.model.inputs(input_ids=IDS)
    read = bundle.model.scores if scoring(recipe) else bundle.model.logits
    ours = np.asarray(read(bundle.params, inputs))
    found = outputs(theirs(recipe, out))
    expected = ours[:, -1:] if scoring(recipe) else ours
    assert np.max(np.abs(found - expected)) <= 1e-4
    base = recipes_base(recipe)
    moved = np.asarray(read(base.params | head_of(bundle), inputs))
    assert np.max(np.abs(moved - ours)) > 1e-5


def recipes_base(recipe):
    from alanything_jax.hub.source import load_model

    return load_model(recipe.model, scoring(recipe), recipe.seed)


def head_of(bundle):
    return {"heads": bundle.params["heads"]} if "heads" in bundle.params else {}


def test_an_adapter_loaded_by_peft_gives_the_merged_logits(run, tmp_path):
    recipe, trained, out = run
    if recipe.adapter is None:
        with pytest.raises(ValueError, match="adapter"):
            alanything_jax.export(trained.path, tmp_path / "a", adapter=True)
        return
    adapter = alanything_jax.export(trained.path, tmp_path / "a", adapter=True)
    hub.save(recipes_base(recipe), tmp_path / "base")
    base = theirs(recipe, tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    assert np.max(np.abs(outputs(loaded) - outputs(theirs(recipe, out)))) <= 1e-4


def test_bfloat16_weights_are_sound_too(tmp_path):
    out = hub.save(tiny_bundle("llama", dtype="bfloat16"), tmp_path / "out")
    checks = verify(out)
    assert checks and all(check.passed for check in checks), checks


def test_no_run_and_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run directory"):
        alanything_jax.export(tmp_path, tmp_path / "out")
    from alanything_jax.training import run_dir

    run_dir.open_run(tmp_path / "run", tiny(CONFIGS[0]))
    with pytest.raises(FileNotFoundError, match="no complete checkpoint yet"):
        alanything_jax.export(tmp_path / "run", tmp_path / "out")
