"""PKU-Alignment/align-anything: two responses, judged along named dimensions, in words too.

    {"question": Q, "image": {"bytes": ..., "path": ...}, "response_1": A, "response_2": B,
     "p_response": 1, "prompt_following_rate_1": 3, "p_rationale_1": "...", ...,
     "text_critique_1": "...", "overall_response": 1, "overall_textfeedback": "..."}
    -> prompt [image] Q; responses A, B; chosen 0; a rating of each response per
       dimension; critiques of A, of B, of both

`align_anything_columns.SUBSETS` says which columns each of the eight subsets has, and
which of them are taken by pattern because their names were not seen. Which response is
better along one dimension is in `extra["choices"]`, as of all raters (`data/feedback.py`).
A critique keeps its "##Critique: ... ##Refinement: ..." whole: it refines in words, no
column holds a refined response. An overall choice other than 1 or 2 leaves `chosen` None.
Columns that this table does not know are in `extra["unknown"]`, and are counted and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alanything_jax.data import feedback, media
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.data.formats.align_anything_columns import (
    CRITIQUES,
    KEPT,
    MODELS,
    OVERALL_CRITIQUE,
    SUBSETS,
    Subset,
)
from alanything_jax.schema import (
    Critique,
    Example,
    Feedback,
    Message,
    Part,
    Rating,
    Response,
)

RATER = "align-anything"
_NUMBERS = (1, 2)
# The most specific first: each of the later ones has columns of an earlier one.
_ORDER = ("ti2ti", "tv2t", "ta2t", "t2v", "t2a", "t2i", "ti2t", "t2t")


def claims(row: Mapping[str, Any]) -> bool:
    """Whether a row is of one of the eight subsets."""
    return subset_of(row) is not None


def subset_of(row: Mapping[str, Any]) -> str | None:
    """The subset whose columns a row has, with values of their kinds; None if none."""
    for name in _ORDER:
        known = SUBSETS[name]
        held = [("text", known.prompt), *known.media]
        held += [(k, c.format(n=n)) for n in _NUMBERS for k, c in known.responses]
        choice = _column(row, _choices(known))
        if choice and all(_fits(kind, row.get(_column(row, c))) for kind, c in held):
            return name
    return None


def _fits(kind, value):
    if isinstance(value, str):
        file = value.lower().endswith(sum(media.SUFFIXES.values(), ()))
        return not file if kind == "text" else value.lower().endswith(_endings(kind))
    return kind != "text" and isinstance(value, bytes | Mapping)


def _endings(kind):
    return (*media.SUFFIXES[kind], ".gif") if kind == "image" else media.SUFFIXES[kind]


def _choices(known):
    return "|".join(f"overall_{target}" for target in known.target.split("|"))


def read(row: Mapping[str, Any], id: str, subset: str = "") -> Example:
    """One row; `subset` is a key of `SUBSETS`, or "": whichever has the row's columns.

    Raises:
      BadRecord: no subset has these columns, or a value is missing or of another kind.
    """
    name = subset or subset_of(row)
    if name is None:
        raise BadRecord(
            "columns", f"{sorted(row)} are those of no subset; name one: {[*SUBSETS]}."
        )
    known, used = SUBSETS[name], set()

    def take(columns: str, n: int = 0) -> Any:
        """A column's value, None if absent; it counts as known from here on."""
        column = _column(row, columns.format(n=n))
        used.add(column)
        return row.get(column)

    def part(kind: str, columns: str, n: int = 0) -> Part:
        value, column = take(columns, n), columns.format(n=n)
        if kind != "text" and value is not None:
            return common.medium(kind, value, column)
        if not isinstance(value, str):
            given = "missing" if value is None else f"expected text, got {value!r:.60}"
            raise BadRecord(column, f"{given}; subset {name!r}, row has {sorted(row)}.")
        return Part("text", text=value)

    prompt = (*(part(*of) for of in known.media), part("text", known.prompt))
    prompt = tuple(_unmarked(p, known) for p in prompt)
    responses = tuple(
        Response(
            (Message("assistant", tuple(part(k, c, n) for k, c in known.responses)),)
        )
        for n in _NUMBERS
    )
    ratings, spoken, choices = _dimensions(row, known, used, take)
    critiques = [
        Critique(said, n - 1, rater=RATER)
        for n in _NUMBERS
        if (said := take(CRITIQUES, n))
    ]
    if said := take(OVERALL_CRITIQUE):
        critiques.append(Critique(said, rater=RATER))
    overall = take(_choices(known))
    chosen = _choice(overall)
    extra = {"subset": name, "choices": choices}
    if chosen is None:
        extra[_column(row, _choices(known)) or "overall"] = overall
    for column in (*KEPT, *(MODELS.format(n=n) for n in _NUMBERS)):
        if value := take(column):
            extra[_column(row, column)] = value
    if unknown := common.rest(row, used):
        extra["unknown"] = unknown
    said = Feedback(
        chosen,
        ratings=tuple(ratings),
        critiques=(*spoken, *critiques),
        rater=RATER,
    )
    return Example(id, (Message("user", prompt),), responses, said, extra)


def _column(row, columns):
    """The first of `A|B` that the row has; None if it has none."""
    return next((c for c in columns.split("|") if c in row), None)


def _unmarked(part, known):
    """Without the marks that stand in a text for the media beside it."""
    if part.kind != "text":
        return part
    text = part.text
    for kind, _ in known.media:
        text = text.replace(f"<{kind}>", "")
    return Part("text", text=text.strip() if text != part.text else text)


def _choice(value):
    """0 or 1 of a 1 or 2; None of anything else."""
    return int(value) - 1 if str(value) in ("1", "2", "1.0", "2.0") else None


def _dimensions(row, known: Subset, used: set, take):
    """Ratings, rationales without a score, and choices, of every dimension of a row."""
    rated = list(
        dict.fromkeys(m[1] for c in row if (m := re.fullmatch(r"(\w+)_rate_[12]", c)))
    )
    ratings, spoken, choices = [], [], []
    letters = {
        d: letter
        for letter in _letters(row, known)
        if (d := _named(letter, known, rated))
    }
    for dimension in dict.fromkeys([*letters, *rated]):
        letter = letters.get(dimension)
        for n in _NUMBERS:
            why = take(f"{letter}_rationale_{n}") or None if letter else None
            score = take(f"{dimension}_rate_{n}")
            if score is not None:
                ratings.append(
                    Rating(n - 1, dimension, _score(score, dimension), why, RATER)
                )
            elif why:
                spoken.append(Critique(why, n - 1, dimension, rater=RATER))
        columns = "|".join(f"{letter}_{target}" for target in known.target.split("|"))
        value = take(columns) if letter else None
        if value is not None:
            chosen = _choice(value)
            votes = [0.5 if chosen is None else float(n == chosen) for n in range(2)]
            choices.append(feedback.choice(RATER, votes, dimension))
    return ratings, spoken, choices


def _letters(row, known: Subset):
    """The letters of a row's dimensions, in the row's order."""
    ends = "|".join([*known.target.split("|"), "rationale_[12]"])
    found = (re.fullmatch(rf"([a-z]+)_(?:{ends})", column) for column in row)
    return [m for m in dict.fromkeys(f[1] for f in found if f) if m != "overall"]


def _named(letter, known: Subset, rated):
    """The dimension of a letter: the table's, else the one that is rated and begins so."""
    named = known.letters.get(letter)
    if named in rated:
        return named
    begin = [name for name in rated if name.startswith(letter)]
    return begin[0] if len(begin) == 1 else named


def _score(value, dimension):
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{dimension}_rate", f"no number: {value!r:.60}") from error
