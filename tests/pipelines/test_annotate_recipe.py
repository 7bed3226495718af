"""Annotation as a recipe: models and a judge by name, and a round with people."""

import dataclasses
import json

import numpy as np
import pytest

from alanything_jax import annotate
from alanything_jax.data import media, store
from alanything_jax.data.formats import label_studio
from alanything_jax.pipelines import asking
from alanything_jax.pipelines.annotate import Annotate
from alanything_jax.pipelines.annotate_recipe import Annotation
from alanything_jax.pipelines.asking import JudgeDown, JudgeSource
from alanything_jax.schema import Message, Part, Response
from tests import toys

DIMS = {"text": ("safety",), "image": ("safety",)}


@pytest.fixture
def prompts(tmp_path):
    """Four prompts, in rows that also hold answers."""
    row = {"chosen": "an own answer", "rejected": "another"}
    place = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {n}"} | row for n in range(4)]
    place.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(place)


@pytest.fixture
def models(monkeypatch):
    """Stands in for models on disk: `<path> <prompt>`; says how they were opened."""
    opened = []

    def stored_model(source, max_new_tokens, sampling, seed=0):
        opened.append((source.path, max_new_tokens, seed))
        return lambda asked: [answer(source.path, m[-1].text) for m in asked]

    def answer(path, text):
        part = Part("text", text=f"{path} to {text}")
        if path.startswith("painter"):
            array = np.full((4, 4, 3), 255 * int(path[-1]), np.uint8)
            part = Part("image", data=media.dump("image", array))
        return Response((Message("assistant", (part,)),))

    monkeypatch.setattr(asking, "stored_model", stored_model)
    return opened


def recipe(prompts, models=("weak", "strong"), **fields):
    stages = Annotate(prompts=prompts, dimensions=DIMS)
    pairs = tuple((name, name) for name in models)
    return Annotation(stages, pairs, toys.annotator, **fields)


def run(made, folder):
    told = []
    return annotate(made, folder, told.append), told


def test_models_answer_and_the_judge_judges(prompts, models, tmp_path):
    made, _ = run(recipe(prompts, max_new_tokens=9), tmp_path / "run")
    assert made == [tmp_path / "run" / "dataset"]
    assert [(path, most) for path, most, _ in models] == [("weak", 9), ("strong", 9)]
    assert models[0][2] != models[1][2]  # one model under two names answers differently
    found = list(store.read(made[0]))
    assert len(found) == 4 and found[0].extra["models"] == ["weak", "strong"]
    texts = [r.messages[0].text for r in found[2].responses]
    assert texts == ["weak to say 2", "strong to say 2"]
    assert {r.dimension for r in found[0].feedback.ratings} == {"safety"}
    assert len(found[0].feedback.critiques) == 3
    # The source's own choice is not the new responses'.
    assert all(c["rater"] == "judge" for c in found[0].extra["choices"])
    assert run(recipe(prompts), tmp_path / "run")[0] == made and len(models) == 2


def test_own_responses_are_kept_when_asked(prompts, models, tmp_path):
    made, _ = run(recipe(prompts, ("weak",), own_responses=True), tmp_path / "run")
    assert [len(e.responses) for e in store.read(made[0])] == [3] * 4


def people(task, better):
    """What a person hands in who prefers response `better`."""
    ours = task["data"]["alanything"]
    said = {f"{slot}_safety": "2" for slot in label_studio.SLOTS}
    said["choice"] = label_studio.SLOTS[ours["order"].index(better)]
    result = [
        {"from_name": name, "type": "choices", "value": {"choices": [value]}}
        for name, value in said.items()
    ]
    return {**task, "annotations": [{"completed_by": "ann", "result": result}]}


@pytest.mark.parametrize("names", [("weak", "strong"), ("painter 0", "painter 1")])
def test_a_round_with_people(prompts, models, tmp_path, names):
    made, told = run(recipe(prompts, names, label_studio=True), tmp_path / "run")
    assert [place.name for place in made] == ["dataset", "label_studio"]
    (folder,) = made[1].iterdir()
    assert f"4 tasks in {folder}" in told
    done = [people(task, 1) for task in json.loads((folder / "tasks.json").read_text())]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(done))
    back = recipe(prompts, names, annotated=(str(export),))
    made, told = run(back, tmp_path / "run")
    assert made[-1].name == "human" and any("ann prefers" in line for line in told)
    judged, found = (list(store.read(made[n])) for n in (0, 2))
    assert [e.responses for e in found] == [e.responses for e in judged]
    raters = {c["rater"]: c for c in found[0].extra["choices"] if not c["dimension"]}
    assert set(raters) == {"judge", "ann"} and raters["ann"]["chosen"] == 1
    with pytest.raises(ValueError, match="not empty"):
        run(back, tmp_path / "run")


def test_what_cannot_be_run(prompts, models, tmp_path):
    with pytest.raises(FileNotFoundError, match="stages.prompts is 'gone.jsonl'"):
        run(recipe("gone.jsonl"), tmp_path / "a")
    down = JudgeSource("gpt", "http://127.0.0.1:9/v1")
    with pytest.raises(JudgeDown, match="--judge.url"):
        run(dataclasses.replace(recipe(prompts), judge=down), tmp_path / "a")
    run(recipe(prompts), tmp_path / "b")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"data": {}, "annotations": []}]))
    with pytest.raises(ValueError, match="bad"):
        run(recipe(prompts, annotated=(str(bad),)), tmp_path / "b")
    # Begun with other models, and not finished.
    (tmp_path / "b" / "dataset").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="belongs to another config"):
        run(recipe(prompts, ("strong", "weak")), tmp_path / "b")
