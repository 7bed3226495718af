"""Scores on the playground: figures by hand, gains paired, critics measured."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data import views
from alanything_jax.evaluation import critic, playground
from alanything_jax.hub.source import playground_bundle
from alanything_jax.pipelines import eval_playground
from alanything_jax.playground import oracle, tasks

TASKS = ("t2i", "i2t") * 3


def scores(*values):
    return playground.Scores(np.array(values, float), TASKS, ())


def test_gains_are_paired_and_by_task():
    base = scores(0.2, 0.4, 0.2, 0.4, 0.2, 0.4)
    aligned = scores(0.5, 0.4, 0.5, 0.4, 0.5, 0.4)
    report = playground.compare({"base": base, "aligned": aligned, "binary": base})
    assert report["base"][0] == pytest.approx(0.3)
    assert report["gain"][0] == pytest.approx(0.15)
    assert report["modalities"]["t2i"]["gain"] == pytest.approx([0.3, 0.3, 0.3])
    assert report["modalities"]["i2t"]["gain"] == [0, 0, 0]
    assert report["binary_gain"] == [0, 0, 0]


def test_relative_gain_is_a_mean_over_tasks():
    base = scores(0.2, 0.4, 0.2, 0.4, 0.2, 0.4)
    aligned = scores(0.3, 0.3, 0.3, 0.3, 0.3, 0.3)
    value, low, high = eval_playground.relative_gain(base, aligned, samples=50)
    # (0.3 - 0.2) / 0.2 = +50% and (0.3 - 0.4) / 0.4 = -25%
    assert value == pytest.approx(0.125) and low == high == pytest.approx(0.125)


def test_a_model_is_measured_and_an_unfinished_answer_scores_nothing():
    bundle = playground_bundle("48x1")
    prompts = playground.test_prompts(9)
    found = playground.measure(
        bundle, prompts, temperature=1.0, max_new_tokens=12, batch_size=4
    )
    assert found.values.shape == (9,) and found.tasks == (*tasks.TASKS, "t2i")
    for value, answer in zip(found.values, found.answers, strict=True):
        assert answer.finished or value == 0
    again = playground.measure(
        bundle, prompts, temperature=1.0, max_new_tokens=12, batch_size=4
    )
    np.testing.assert_array_equal(found.values, again.values)


def test_test_prompts_share_no_combination_with_training():
    def said(split):
        out = set()
        for example in tasks.prompts(split, 800, 3):
            goal = oracle.goal_of(example)
            texts = goal["media"] | dict([goal["text"]] if goal["text"] else [])
            out |= {
                oracle.WORLDS[k].key(oracle.WORLDS[k].read(t)) for k, t in texts.items()
            }
        return out

    assert not said("test") & said("train")


def test_the_oracle_in_the_critics_place_is_perfect(monkeypatch):
    examples = list(tasks.attempts(24, 5, "test"))

    def right(bundle, asked, **_):
        said = [oracle.feedback(e, e.responses[0]) for e in examples]
        return [[dataclasses.make_dataclass("A", ["text"])(text)] for text in said]

    monkeypatch.setattr(critic, "generate", right)
    words = views.templates("playground")
    figures = critic.figures(critic.judge(None, examples, words))
    for name in ("verdict_accuracy", "kappa", "precision", "recall", "exact"):
        assert figures[name][0] == 1.0, name


def test_a_critic_by_hand():
    def item(said, true):
        return critic.Judged("", said, true, False, "t2i")

    judged = [
        item(True, True),
        item(False, False),
        item(False, True),
        item(None, False),
    ]
    figures = critic.figures(judged)
    assert figures["verdict_accuracy"][0] == 0.5  # no verdict counts as wrong
    assert figures["precision"][0] == 0.5  # one of two "bad" is bad
    assert figures["recall"][0] == 0.5  # one of two bad ones is called bad
    assert figures["exact"][0] == 0.0


def test_evaluation_of_the_playground_edition(tmp_path):
    recipe = eval_playground.PlaygroundEval(
        (("base", "x"), ("other", "y")), temperatures=(1.0,)
    ).tiny()
    recipe = dataclasses.replace(recipe, prompts=8, max_new_tokens=8)
    report = eval_playground.evaluate_playground(recipe, tmp_path, lambda line: None)
    assert report["T1.0"]["relative_gain"]["other"] == [0, 0, 0]
    assert set(report["T1.0"]["parts"]) == {"understanding", "generation", "selection"}
    assert (tmp_path / "report.json").exists()
    with pytest.raises(ValueError, match='name one of them "base"'):
        eval_playground.PlaygroundEval((("a", "x"),))
