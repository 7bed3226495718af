"""All-modality understanding: one question over text, a picture or clip, and a sound.

Paper: Align Anything, arXiv 2412.15838. People's answers, each with the
visual and auditory facts it rests on, stand in for what a text judge cannot see or hear.
Unlike the released scripts the judge is told the question, and rows are keyed by id.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data.files import digest
from alanything_jax.evaluation.eval_anything import scores
from alanything_jax.evaluation.eval_anything.run import evaluate_rows, judged
from alanything_jax.evaluation.eval_anything.templates import (
    Templates,
    parse_grade,
    quoted,
)
from alanything_jax.rewards.judge import Judge, Question
from alanything_jax.schema import Message, Part

LOWEST = 1


@dataclasses.dataclass(frozen=True)
class Reference:
    """One person's answer, with the facts in it that were seen and heard."""

    answer: str
    visual: tuple[str, ...]
    auditory: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of the benchmark.

    Attributes:
      id: unique.
      question: the text.
      media: the picture or clip, and the sound.
      dimension: one of `scores.DIMENSIONS`.
      references: ten in the published set.
      extra: the source's other fields.
    """

    id: str
    question: str
    media: tuple[Part, ...]
    dimension: str
    references: tuple[Reference, ...]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What the model under test is asked: the media, then the question."""
        return (Message("user", (*self.media, Part("text", text=self.question))),)


def judge_question(item: Item, response: str, templates: Templates) -> Question:
    """What the judge is asked about one response; text only."""
    rubric = templates[f"amu_{item.dimension.replace('-', '_')}"].substitute()
    references = "\n".join(
        templates["amu_reference"].substitute(
            number=number,
            answer=quoted(reference.answer),
            visual=", ".join(reference.visual) or "(nothing noted)",
            auditory=", ".join(reference.auditory) or "(nothing noted)",
        )
        for number, reference in enumerate(item.references, 1)
    )
    user = templates["amu_user"].substitute(
        question=item.question, references=references, response=quoted(response)
    )
    messages = ("system", rubric), ("user", user)
    said = (Message(role, (Part("text", text=t),)) for role, t in messages)
    return Question(item.id, tuple(said))


def evaluate(
    items: Sequence[Item],
    responses: Mapping[str, str | None],
    judge: Judge,
    path: str | Path,
    templates: Templates,
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Grade the responses; what is graded is kept in `path`, see `run.evaluate_rows`.

    An empty response gets 1 without asking. No response (None, or its id is not there), a
    judge that failed and a reply without a grade are no score: counted, and left out.

    Returns `{"amu": S or None, "dimensions": {name: Mean}, "problems": {reason: count},
    "rows": {id: {"score", "reply"} or {"error"}}}`.

    Raises ValueError: responses to items that are not there.
    """
    if strange := set(responses) - {item.id for item in items}:
        raise ValueError(f"responses to unknown items: {sorted(strange)[:5]}.")

    def decided(item):
        if (said := responses.get(item.id)) is None:
            return {"error": "no response"}
        return None if said.strip() else {"score": LOWEST, "problem": "empty response"}

    rows = evaluate_rows(
        items,
        judged(
            judge,
            decided,
            lambda item: judge_question(item, responses[item.id], templates),
            lambda item, reply: graded(reply),
        ),
        path,
        settings=settings,
        stamp=lambda item: digest(responses.get(item.id)),
    )
    graded_by = {name: [] for name in scores.DIMENSIONS}
    for item in items:
        graded_by[item.dimension].append(rows[item.id].get("score"))
    means = {name: scores.mean(some) for name, some in graded_by.items()}
    found = {"amu": scores.amu(means), "dimensions": means}
    return found | {"problems": problems(rows.values()), "rows": rows}


def graded(reply) -> dict[str, Any]:
    """A `Reply` as a result: its grade, or why there is none."""
    if reply.text is None:
        return {"error": f"judge: {reply.error}"}
    score = parse_grade(reply.text)
    problem = {"problem": "the judge gave no grade"} if score is None else {}
    return {"score": score, "reply": reply.text} | problem


def problems(results) -> dict[str, int]:
    """How often each reason kept a row from an ordinary score."""
    reasons = (result.get("error") or result.get("problem") for result in results)
    return dict(collections.Counter(reason for reason in reasons if reason))
