"""What is learnt of a record: its answers, critiques of them, refinements after them."""

import pytest

from alanything_jax.data import views
from alanything_jax.playground import tasks
from alanything_jax.playground.lexicon import DIMENSIONS

WORDS = views.templates("playground")


@pytest.fixture(scope="module")
def example():
    return next(tasks.attempts(1, 0))


def texts(messages):
    return [(m.role, m.text.strip()) for m in messages]


def test_critiques_are_answers_to_being_asked_for_them(example):
    found = list(views.of(example, "critiques", WORDS))
    assert len(found) == len(DIMENSIONS) + 1
    for one, critique in zip(found, example.feedback.critiques, strict=True):
        assert one.prompt[: len(example.prompt)] == example.prompt
        assert one.prompt[len(example.prompt)] == example.responses[0].messages[0]
        asked = one.prompt[-1].text
        assert asked == (
            f"check {critique.dimension}" if critique.dimension else "critique"
        )
        assert texts(one.responses[0].messages) == [("assistant", critique.text)]


def test_refinements_follow_the_critique(example):
    (one,) = views.of(example, "refinements", WORDS)
    critique = example.feedback.critiques[-1]
    assert one.prompt[-1].text == f"{critique.text} improve"
    assert one.responses == (critique.refinement,)


def test_a_record_without_feedback_shows_nothing_but_its_answers():
    example = next(tasks.demonstrations(1, 0))
    assert list(views.of(example, "answers", None)) == [example]
    assert not list(views.of(example, "critiques", WORDS))
    assert not list(views.of(example, "refinements", WORDS))


def test_templates_by_name_and_by_folder(tmp_path):
    assert "$critique" in views.templates("llf").refine
    for name in ("critique", "check", "refine"):
        (tmp_path / f"{name}.txt").write_text(f"{name} $dimension\n")
    assert views.templates(str(tmp_path)).check == "check $dimension"
    (tmp_path / "check.txt").unlink()
    with pytest.raises(FileNotFoundError, match="check.txt.*Give one of"):
        views.templates(str(tmp_path))
