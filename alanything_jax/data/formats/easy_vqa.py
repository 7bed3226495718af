"""easy-VQA (Zhou 2019, MIT; PyPI `easy-vqa`): questions about one coloured shape.

    ["what is the blue shape?", "rectangle", 0]        data/train/questions.json
                                                       data/train/images/0.png

A row becomes a pair: its answer, and a wrong one of the same kind, drawn by the record's
id. Pictures are relative to the folder of the questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.schema import Example, Feedback, Message, Part

KINDS: Mapping[str, tuple[str, ...]] = {
    "yes or no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}


def claims(row: Any) -> bool:
    """Whether a row is one of easy-VQA's: question, answer, number of a picture."""
    return isinstance(row, list) and [type(v) for v in row] == [str, str, int]


def read(row: Any, id: str) -> Example:
    """One row. Raises BadRecord: another layout, or an answer that is not among the 13."""
    if not claims(row):
        raise BadRecord("row", f"expected [question, answer, picture], got {row!r:.60}")
    question, answer, number = row
    kind = next((k for k, answers in KINDS.items() if answer in answers), None)
    if kind is None:
        known = [a for answers in KINDS.values() for a in answers]
        raise BadRecord("answer", f"{answer!r} is none of {known}.")
    others = [other for other in KINDS[kind] if other != answer]
    # Seeded by text: the same on every machine.
    wrong = random.Random(f"{id} {question}").choice(others)
    picture = Part("image", uri=f"images/{number}.png")
    prompt = (Message("user", (picture, Part("text", text=question))),)
    sides = tuple(common.response(text, "answer") for text in (answer, wrong))
    extra = {"kind": kind, "picture": number}
    return Example(id, prompt, sides, Feedback(chosen=0), extra)
