"""Exact match: what counts as right, what pictures are needed for."""

import json

import numpy as np
import pytest

from alanything_jax.data.groups import Data
from alanything_jax.generation.generate import Answer
from alanything_jax.pipelines import eval_answers
from alanything_jax.schema import Message, Part, Response


def said(text, finished=True):
    response = Response((Message("assistant", (Part("text", text=text),)),))
    return [Answer(response, text, 0.0, 1, finished, np.zeros(1, np.int32))]


def test_shares_by_hand(tmp_path, monkeypatch):
    wanted = ["yes", "no", "yes", "red", "blue"]
    prompts = ["a", "a", "a", "b", "b"]
    rows = [
        {"prompt": p, "completion": w} for p, w in zip(prompts, wanted, strict=True)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    answers = {
        "one": [said("yes "), said("yes"), said("yes"), said("red"), said("red")],
        # What never ends is wrong, and so are more words than asked for.
        "two": [
            said("yes", False),
            said("no no"),
            said("yes"),
            said("red"),
            said("blue"),
        ],
    }
    monkeypatch.setattr(eval_answers, "load_model", lambda source: source.path)
    monkeypatch.setattr(eval_answers, "generate", lambda model, *a, **k: answers[model])
    recipe = eval_answers.AnswerEval(
        (("first", "one"), ("second", "two")), Data(str(path))
    )
    report = eval_answers.evaluate_answers(recipe, tmp_path / "run")
    assert report["blind"][0] == 0.6
    first, second = report["models"]["first"], report["models"]["second"]
    assert (first["accuracy"][0], second["accuracy"][0]) == (0.6, 0.6)
    # One lost, one gained.
    assert (first["mcnemar"], second["mcnemar"]) == (1.0, 1.0)
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report


def test_a_record_without_an_answer(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "a"}]))
    recipe = eval_answers.AnswerEval((("m", "tiny:llama"),), Data(str(path)))
    with pytest.raises(ValueError, match="no answer to compare"):
        eval_answers.evaluate_answers(recipe, tmp_path / "run")
