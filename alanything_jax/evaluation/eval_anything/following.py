"""All-modality generation, first part: does an output follow its instruction?

Paper: Align Anything, arXiv 2412.15838. Text and image are graded 1..10 by
a rubric; for sound and clips, for which no judge is good enough to grade, a judge that
hears or sees them answers multiple-choice questions: 10 where right, 0 where wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data.files import digest
from alanything_jax.evaluation.eval_anything import scores
from alanything_jax.evaluation.eval_anything.amu import graded, problems
from alanything_jax.evaluation.eval_anything.run import evaluate_rows, judged
from alanything_jax.evaluation.eval_anything.templates import Templates, quoted
from alanything_jax.rewards.judge import Judge, Question
from alanything_jax.schema import Message, Modality, Part


@dataclasses.dataclass(frozen=True)
class Choice:
    """A multiple-choice question about an output; `answer` is its option's letter."""

    id: str
    question: str
    options: str
    answer: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What to make, in which modality, and the questions that tell whether it was made.

    Without questions a judge grades by the modality's rubric (text and image have one).
    """

    id: str
    modality: Modality
    prompt: str
    choices: tuple[Choice, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Check:
    """One thing to ask about one output."""

    id: str
    instruction: Instruction
    choice: Choice | None


def follow_question(
    instruction: Instruction, output: Part, templates: Templates
) -> Question:
    """What a judge is asked to grade one output by its modality's rubric.

    Raises ValueError: the modality has no rubric: it needs multiple-choice questions.
    """
    fields = {"prompt": instruction.prompt}
    if instruction.modality == "text":
        fields["response"] = quoted(output.text or "")
        text = templates["follow_text"].substitute(fields)
        parts = (Part("text", text=text),)
    elif instruction.modality == "image":
        text = templates["follow_image"].substitute(fields)
        parts = (output, Part("text", text=text))
    else:
        raise ValueError(
            f"instruction {instruction.id}: {instruction.modality} has no rubric; give "
            "it multiple-choice questions."
        )
    return Question(instruction.id, (Message("user", parts),))


def choice_question(
    id: str, choice: Choice, output: Part, templates: Templates
) -> Question:
    """A multiple-choice question about an output, for a judge that hears or sees it."""
    fields = {"question": choice.question, "options": choice.options}
    text = templates["follow_choice"].substitute(fields)
    return Question(id, (Message("user", (output, Part("text", text=text))),))


def parse_choice(text: str | None) -> str | None:
    """The letter of a reply; None where none is plainly given.

    The article does not count as option A, as it did in the released scripts.

    Example: `"[[B]]"`, `"(b)"`, `"B. a dog"`, `"The answer is B."` -> "B";
    `"A dog is barking"` -> None.
    """
    text = (text or "").strip()
    marked = re.findall(r"\[\[\s*([A-Za-z])\s*\]\]", text)
    if marked:
        return marked[-1].upper()
    alone = re.match(r"\(?([A-Za-z])(?:\)|[.:]|$)", text)
    named = re.search(
        r"\b(?i:answer|option|choice)(?: is|:)? *\(?([B-Z]|A(?! [a-z]))\b", text
    )
    found = alone or named
    return found[1].upper() if found else None


def evaluate_following(
    instructions: Sequence[Instruction],
    outputs: Mapping[str, Part | None],
    judge: Judge,
    path: str | Path,
    templates: Templates,
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """S_i per modality: a rubric's 1..10, or 10 for a right and 0 for a wrong choice.

    An output that is not there (None, or no such id), a failed judge and a reply that
    cannot be read are no score: counted, and left out. An empty text gets 1.

    Returns `{"follow": {modality: Mean}, "problems": {reason: count}, "rows": {...}}`.

    Raises:
      ValueError: outputs of another modality than asked for, or for unknown instructions.
    """
    by_id = {instruction.id: instruction for instruction in instructions}
    for id, output in outputs.items():
        if id not in by_id:
            raise ValueError(f"an output for the unknown instruction {id!r}.")
        if output is not None and output.kind != by_id[id].modality:
            raise ValueError(f"{id}: asked {by_id[id].modality}, given {output.kind}.")
    asked = [(i, choice) for i in instructions for choice in i.choices or (None,)]
    checks = [_Check(f"{i.id}/{c.id}" if c else i.id, i, c) for i, c in asked]

    def decided(check):
        output = outputs.get(check.instruction.id)
        if output is None:
            return {"error": f"no {check.instruction.modality} output"}
        empty = output.kind == "text" and not (output.text or "").strip()
        return {"score": 1, "problem": "empty output"} if empty else None

    def question(check):
        output = outputs[check.instruction.id]
        if check.choice:
            return choice_question(check.id, check.choice, output, templates)
        return follow_question(check.instruction, output, templates)

    def stamp(check):
        return digest(outputs.get(check.instruction.id))

    ask = judged(judge, decided, question, _scored)
    rows = evaluate_rows(checks, ask, path, settings=settings, stamp=stamp)
    by_kind: dict[str, list] = {i.modality: [] for i in instructions}
    for check in checks:
        by_kind[check.instruction.modality].append(rows[check.id].get("score"))
    means = {kind: scores.mean(some) for kind, some in by_kind.items()}
    return {"follow": means, "problems": problems(rows.values()), "rows": rows}


def _scored(check, reply):
    if check.choice is None or reply.text is None:
        return graded(reply)
    picked = parse_choice(reply.text)
    if picked is None:
        problem = "the judge picked no option"
        return {"score": None, "reply": reply.text, "problem": problem}
    right = picked == check.choice.answer.strip().upper()
    return {"score": 10 if right else 0, "reply": reply.text}
