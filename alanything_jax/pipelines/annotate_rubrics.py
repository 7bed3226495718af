"""Rubrics and question texts from files, and the tagged replies to them.

A folder holds the questions (`rate.txt`, `choose.txt`, `critique.txt`, `overall.txt`,
`again.txt`) and one file a modality with a section `== dimension ==` for each rubric. All
are `string.Template` texts. Beside the names the pipeline fills in (`$prompt`,
`$response`, `$responses`, `$rubric`, ...) any may ask for an attribute of the record,
such as `$reference`: a string or number of its `extra`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.feedback import transcript
from alanything_jax.schema import Example, Message, Part

FOLDER = Path(__file__).parents[1] / "data" / "templates" / "annotate"
QUESTIONS = ("rate", "choose", "critique", "overall", "again")
_SECTION = re.compile(r"^== (\w+) ==$\n", re.MULTILINE)


class Garbled(ValueError):
    """A reply that is not in the form asked for."""

    cause = "garbled"


@dataclasses.dataclass(frozen=True)
class Rubrics:
    """The texts of a folder.

    Attributes:
      questions: name -> text.
      sections: modality -> dimension -> rubric, in the recipe's order.
    """

    questions: Mapping[str, str]
    sections: Mapping[str, Mapping[str, str]]


def load(folder: Path, dimensions: Mapping[str, Sequence[str]]) -> Rubrics:
    """Read a folder.

    Raises:
      ValueError: a file or section that is needed is not there, or a text is no template.
    """
    texts = {}
    for name in (*QUESTIONS, *dimensions):
        path = Path(folder) / f"{name}.txt"
        if not path.is_file():
            raise ValueError(f"{path} is missing; the recipe's rubrics need it.")
        texts[name] = path.read_text(encoding="utf-8")
        if not string.Template(texts[name]).is_valid():
            raise ValueError(f"{path}: write a dollar sign that is no name as $$.")
    sections = {}
    for modality, names in dimensions.items():
        pieces = _SECTION.split(texts[modality])[1:]
        there = dict(zip(pieces[::2], map(str.strip, pieces[1::2]), strict=True))
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, there, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{modality}.txt in {folder} has no section {name!r}, only "
                    f"{sorted(there)}.{hint}"
                )
        sections[modality] = {name: there[name] for name in names}
    return Rubrics({name: texts[name] for name in QUESTIONS}, sections)


def fill(text: str, example: Example, where: str, **given: str) -> str:
    """A template's text with the given names and the record's attributes in it.

    Raises BadRecord: it asks for an attribute the record does not have.
    """
    values = dict(given)
    for name in string.Template(text).get_identifiers():
        if name in values:
            continue
        value = example.extra.get(name)
        if not isinstance(value, str | int | float) or value == "":
            raise BadRecord(
                f"extra.{name}",
                f"the rubric {where} asks for it; the record has "
                f"{sorted(example.extra)}.",
            )
        values[name] = str(value)
    return string.Template(text).substitute(values)


def question(
    text: str,
    example: Example,
    where: str,
    parts_by_name: Mapping[str, Sequence[Part]],
    **given: str,
) -> tuple[Message, ...]:
    """One user message: the template's text, the given parts at their names' places.

        "Look: $response. Good?", {"response": (image,)} -> "Look: " image ". Good?"

    Raises BadRecord: it asks for an attribute the record does not have.
    """
    # A character no text may hold marks the places, so that no record can forge one.
    marks = {name: f"\0{name}\0" for name in parts_by_name}
    given = {name: _unmarked(value) for name, value in given.items()}
    plain = {n: _unmarked(value) for n, value in example.extra.items()}
    example = dataclasses.replace(example, extra=plain)
    whole = fill(text, example, where, **given, **marks)
    parts: list[Part] = []
    for n, piece in enumerate(whole.split("\0")):
        if n % 2:
            parts += parts_by_name[piece]
        elif piece:
            parts.append(Part("text", text=piece))
    return (Message("user", tuple(parts)),)


def _unmarked(value):
    return value.replace("\0", "") if isinstance(value, str) else value


def shown(messages: Sequence[Message]) -> tuple[Part, ...]:
    """A prompt or a response as a judge sees it."""
    return transcript(messages, named=len(messages) > 1)


def side_by_side(
    example: Example, order: Sequence[int], notes: Sequence[str] = ()
) -> tuple[Part, ...]:
    """All responses under the numbers [1], [2], ... of a presentation order.

    Args:
      notes: per response, in the example's order, a text that follows it.
    """
    out: list[Part] = []
    for place, number in enumerate(order, 1):
        gap = "\n\n" if place > 1 else ""
        out.append(Part("text", text=f"{gap}--- answer [{place}] ---\n"))
        out += shown(example.responses[number].messages)
        note = f"\n--- said of [{place}] ---\n{notes[number]}" if notes else ""
        out.append(Part("text", text=f"{note}\n--- end of answer [{place}] ---"))
    return tuple(out)


def parse(text: str, tags: Sequence[str]) -> dict[str, str]:
    """What stands between each of the tags, which must come once each and not be empty.

        "<why>x</why> <grade>2</grade>", ("why", "grade") -> {"why": "x", "grade": "2"}

    A leading `<think>` block is left out.

    Raises Garbled: a tag is missing, comes twice or is empty.
    """
    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL)
    out = {}
    for tag in tags:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL | re.IGNORECASE)
        if len(found) != 1 or not found[0].strip():
            count = f"{len(found)} times" if len(found) != 1 else "empty"
            raise Garbled(f"<{tag}> comes {count}, once is needed, in {text!r:.80}")
        out[tag] = found[0].strip()
    return out


def grade(text: str) -> int:
    """A whole grade, "2" or "2/3". Raises Garbled for anything but 0 to 3."""
    found = re.fullmatch(r"([0-3])(?:\s*/\s*3)?", text.strip())
    if not found:
        raise Garbled(f"the grade {text!r:.40} is none of 0, 1, 2, 3")
    return int(found[1])


def better(text: str, order: Sequence[int]) -> list[float]:
    """The votes for each response, in the example's order, of a choice such as "[2]".

        "2", order (1, 0) -> [1.0, 0.0];  "tie" -> [0.5, 0.5]

    Raises Garbled: neither a shown number nor a tie.
    """
    size = len(order)
    if text.strip().lower() == "tie":
        return [1 / size] * size
    found = re.fullmatch(r"\[?(\d{1,4})\]?", text.strip())
    if not found or not 1 <= int(found[1]) <= size:
        raise Garbled(f"the choice {text!r:.40} is neither 1 to {size} nor tie")
    return [float(number == order[int(found[1]) - 1]) for number in range(size)]


def renumber(text: str, order: Sequence[int]) -> str:
    """The bracketed numbers of a presentation order as those of the example.

    "[1] beats [2]", order (1, 0) -> "[2] beats [1]"
    """

    def own(found):
        place = int(found[1])
        known = 1 <= place <= len(order)
        return f"[{order[place - 1] + 1}]" if known else found[0]

    return re.sub(r"\[(\d{1,4})\]", own, text)
