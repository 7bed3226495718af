"""InterMT: conversations of pictures and words, preferred turn by turn or as a whole.

    {"front_convs": [{"round": 1, "prompt": Q, "prompt_images": ["images/a.png"],
                      "response": A, "response_images": [""]}, ...],
     "paired_convs": {"round": 3, "prompt": Q3, "response_1": B, "response_1_images": [...],
                      "response_2": C, "response_2_images": [...]},
     "local_overall_preference": {"text_quality": 1, "context_coherence": 2, ...}}
    -> prompt Q, A, ..., Q3; responses B, C: one turn is compared
    the same with "overall_preference"
    -> prompt Q; responses [A, ..., Q3, B], [A, ..., Q3, C]: conversations are compared
    {"conversations": [{"round": 0, "annotations": {"helpfulness": 2, ...}},
                       {"round": 1, "round_conversations": {"prompt": Q, ...},
                        "annotations": {"text_quality": 3, "reason_text_quality": "..."}}]}
    -> prompt Q; response [A, ...]; ratings 0-3 of the whole, and of turns: text_quality@1

Chen et al. 2025 (arXiv:2505.23950). These are the layouts of InterMT-Bench, which consists
of InterMT's annotations (align-anything's `projects/intermt`); its crucial steps, with flat
turns and one "annotation", are read, too. The columns of the data set's own parquet files
were not seen. No overall choice is published: `chosen` is what most dimensions prefer, None
where they tie (0 is a tie of one). A picture stands where the text has "<Image, what it
shows>", if there are as many as pictures, else before the text. Fields that are not known
are in `extra["unknown"]`, and are counted and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alanything_jax.data import feedback
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.schema import Example, Feedback, Message, Part, Rating, Response

RATER = "intermt"
_CHOICES = {"local": "local_overall_preference", "global": "overall_preference"}
_VOTES = {0: (0.5, 0.5), 1: (1.0, 0.0), 2: (0.0, 1.0)}
_TURN = ("round", "prompt_uuid", "response_uuid")
_MARK = re.compile(r"<Image, ([^<>]*)>")


def claims(row: Mapping[str, Any]) -> bool:
    """Whether a row has one of these layouts."""
    turns = row.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    return "paired_convs" in row or (isinstance(first, Mapping) and "round" in first)


def read(row: Mapping[str, Any], id: str) -> Example:
    """One row. Raises BadRecord naming the field at fault."""
    return _pair(row, id) if "paired_convs" in row else _scored(row, id)


def _pair(row, id):
    unknown: dict[str, Any] = {}
    talk = _talk(_list(row, "front_convs"), "front_convs", unknown)
    sides = ("response_1", "response_2")
    last = _table(row["paired_convs"], "paired_convs")
    asked, *answers = _turn(last, "paired_convs", sides, unknown)
    talk = [*talk, asked]
    levels = [level for level, column in _CHOICES.items() if column in row]
    if len(levels) != 1:
        raise BadRecord("preference", f"give one of {[*_CHOICES.values()]}.")
    column = _CHOICES[levels[0]]
    size = 1 if levels == ["global"] else len(talk)
    choices = []
    for dimension, value in _table(row[column], column).items():
        if value is None:
            continue
        if value not in list(_VOTES):
            field = f"{column}.{dimension}"
            raise BadRecord(field, f"{value!r:.60} is none of 0, 1, 2")
        choices.append(feedback.choice(RATER, _VOTES[value], dimension))
    mean = [sum(c["votes"][n] for c in choices) for n in range(2)]
    unknown |= common.rest(row, ("front_convs", "paired_convs", column, "id"))
    return Example(
        id,
        tuple(talk[:size]),
        tuple(Response((*talk[size:], answer)) for answer in answers),
        Feedback(feedback.leading(mean), rater=RATER),
        _extra(row, unknown, level=levels[0], round=last.get("round"), choices=choices),
    )


def _scored(row, id):
    """A conversation with ratings; round 0 holds those of the whole."""
    unknown: dict[str, Any] = {}
    ratings = _ratings(row.get("annotation") or {}, "", unknown)
    turns = []
    for n, turn in enumerate(_list(row, "conversations")):
        number = common.need(_table(turn, f"conversations[{n}]"), "round")
        where = f"@{number}" if number else ""
        ratings += _ratings(turn.get("annotations") or {}, where, unknown)
        if "round_conversations" in turn:
            unknown |= common.rest(
                turn, ("round", "round_conversations", "annotations")
            )
            turn = _table(turn["round_conversations"], "round_conversations")
        if number:
            turns.append(common.rest(turn, ("annotations",)))
    talk = _talk(turns, "conversations", unknown)
    if not talk:
        raise BadRecord("conversations", "no round but 0; give prompt and response.")
    unknown |= common.rest(row, ("conversations", "annotation", "id"))
    said = Feedback(ratings=tuple(ratings), rater=RATER)
    talk, extra = tuple(talk), _extra(row, unknown)
    return Example(id, talk[:1], (Response(talk[1:]),), said, extra)


def _extra(row, unknown, **known):
    named = {"id": row["id"]} if "id" in row else {}
    return named | known | ({"unknown": unknown} if unknown else {})


def _ratings(noted, where, unknown):
    """Scores by dimension, each with its reason."""
    out = []
    for name, value in _table(noted, f"annotations{where}").items():
        dimension = name.removeprefix("reason_")
        if isinstance(value, int | float):
            why = noted.get(f"reason_{name}") or None
            out.append(Rating(0, f"{name}{where}", float(value), why, RATER))
        elif dimension == name or dimension not in noted:
            unknown[f"{name}{where}"] = value
    return out


def _table(value, field):
    if not isinstance(value, Mapping):
        raise BadRecord(field, f"expected named fields, got {value!r:.60}")
    return value


def _list(row, field):
    value = common.need(row, field)
    if not isinstance(value, list | tuple):
        raise BadRecord(field, f"expected a list, got {value!r:.60}")
    return value


def _talk(turns, where, unknown) -> list[Message]:
    """The messages of whole rounds."""
    return [
        message
        for n, turn in enumerate(turns)
        for message in _turn(turn, f"{where}[{n}]", ("response",), unknown)
    ]


def _turn(turn, where, answers: Sequence[str], unknown) -> list[Message]:
    """A round's question and its answers."""
    names = ("prompt", *answers)
    _table(turn, where)
    known = {*_TURN, *names, *(f"{name}_images" for name in names)}
    unknown |= {f"{where}.{k}": v for k, v in turn.items() if k not in known}
    roles = ("user", *["assistant"] * len(answers))
    return [
        Message(role, _parts(turn, name, where))
        for role, name in zip(roles, names, strict=True)
    ]


def _parts(turn, name, where) -> tuple[Part, ...]:
    text, field = common.need(turn, name), f"{where}.{name}"
    if not isinstance(text, str):
        raise BadRecord(field, f"expected text, got {text!r:.60}")
    given = _list(turn, f"{name}_images") if turn.get(f"{name}_images") else ()
    images = [common.medium("image", u, f"{field}_images") for u in given if u != ""]
    pieces = _MARK.split(text)
    if not images or len(pieces) != 2 * len(images) + 1:
        return (*images, Part("text", text=text))
    out = [Part("text", text=pieces[0])]
    for image, shown, after in zip(images, pieces[1::2], pieces[2::2], strict=True):
        meta = {**image.meta, "caption": shown}
        out += [Part("image", image.text, image.data, image.uri, meta)]
        out += [Part("text", text=after)]
    return tuple(part for part in out if part.kind != "text" or part.text.strip())
