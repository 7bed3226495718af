"""Other groups from the same records: critiques to learn, refinements, single labels.

    answers       prompt x                      -> responses y
    labelled      x                             -> one y, desirable or not
    mismatched    x                             -> one y, and another prompt's y'
    verdicts      x, y, "is it good?"           -> Yes, No, the right one first
    critiques     x, y, "critique it"           -> critique c
    refinements   x, y, "c; now improve it"     -> refined answer y*

The words that ask for a critique or a refinement are templates, texts with $dimension
and $critique in them, in a folder of `data/templates`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from alanything_jax.schema import Example, Feedback, Message, Part, Response

View = Literal[
    "answers", "critiques", "refinements", "labelled", "mismatched", "verdicts"
]
LABELLED = ("labelled", "mismatched", "verdicts")
VERDICT = "Is the answer above good? Answer Yes or No."
_FOLDER = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Templates:
    """How a model is asked for feedback, and how it is given feedback.

    Attributes:
      critique: asks for an overall critique. check: for one of a `$dimension`.
      refine: gives a `$critique` and asks for a better answer.
    """

    critique: str
    check: str
    refine: str


def templates(folder: str) -> Templates:
    """Templates by the name of a folder in `data/templates`, or by a path.

    Raises FileNotFoundError: a file of the three is missing.
    """
    place = Path(folder) if Path(folder).is_dir() else _FOLDER / folder
    texts = {}
    for field in dataclasses.fields(Templates):
        path = place / f"{field.name}.txt"
        if not path.is_file():
            there = sorted(p.name for p in _FOLDER.iterdir())
            raise FileNotFoundError(
                f"no template {path}. Give one of {there}, or a folder with critique.txt, "
                "check.txt and refine.txt."
            )
        texts[field.name] = path.read_text(encoding="utf-8").strip()
    return Templates(**texts)


def ask_critique(
    example: Example, response: Response, words: Templates, dimension: str | None = None
) -> tuple[Message, ...]:
    """The conversation that ends with asking for feedback on a response."""
    said = words.critique
    if dimension is not None:
        said = string.Template(words.check).safe_substitute(dimension=dimension)
    return (*example.prompt, *response.messages, _user(said))


def ask_refinement(
    example: Example, response: Response, critique: str, words: Templates
) -> tuple[Message, ...]:
    """The conversation that ends with a critique and asking for a better answer."""
    said = string.Template(words.refine).safe_substitute(critique=critique)
    return (*example.prompt, *response.messages, _user(said))


def of(example: Example, view: View, words: Templates | None) -> Iterator[Example]:
    """The examples that a view makes of one record; none where it has no such feedback."""
    if view == "answers":
        yield example
        return
    if view in LABELLED:
        yield from _labelled(example, view)
        return
    for n, item in enumerate(example.feedback.critiques):
        if item.response is None or words is None:
            continue
        response = example.responses[item.response]
        if view == "critiques":
            prompt = ask_critique(example, response, words, item.dimension)
            answer = Response((Message("assistant", (Part("text", text=item.text),)),))
        elif item.refinement is not None:
            prompt = ask_refinement(example, response, item.text, words)
            answer = item.refinement
        else:
            continue
        yield Example(
            f"{example.id}/{view}-{n}", prompt, (answer,), extra=dict(example.extra)
        )


def _labelled(example, view):
    """One example of each response that has a label; of a pair, the chosen one is good."""
    feedback = example.feedback
    labels = feedback.labels
    if not labels and feedback.chosen is not None:
        labels = tuple(n == feedback.chosen for n in range(len(example.responses)))
    for n, (response, label) in enumerate(zip(example.responses, labels, strict=False)):
        if label is None:
            continue
        prompt, answers = example.prompt, (response,)
        said = Feedback(labels=(label,), rater=feedback.rater)
        if view == "verdicts":
            prompt = (*prompt, *response.messages, _user(VERDICT))
            words = ("Yes", "No")
            answers = tuple(
                Response((Message("assistant", (Part("text", text=word),)),))
                for word in words
            )
            said = Feedback(chosen=words.index("Yes" if label else "No"))
        yield Example(
            f"{example.id}/{view}-{n}", prompt, answers, said, dict(example.extra)
        )


def _user(text):
    return Message("user", (Part("text", text=text),))
