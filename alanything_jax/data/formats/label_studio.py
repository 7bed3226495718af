"""Label Studio's JSON export of annotated tasks that `label_studio_tasks` wrote.

{"data": {"alanything": {"order": [1, 0], "example": {...}, ...}, ...},
 "annotations": [{"completed_by": {"email": "ann@x.org"}, "result": [
   {"from_name": "choice", "type": "choices", "value": {"choices": ["first"]}}, ...]}]}
-> responses in their own order again; chosen 1; ratings and critiques by ann@x.org
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from alanything_jax.data import feedback, store
from alanything_jax.data.encode import BadRecord
from alanything_jax.schema import Critique, Example, Message, Part, Rating, Response

SLOTS = ("first", "second")
GRADES = ("0", "1", "2", "3")


def claims(row: Mapping[str, Any]) -> bool:
    """Whether a row is an annotated task of our making."""
    data = row.get("data")
    ours = isinstance(data, Mapping) and "alanything" in data
    return ours and isinstance(row.get("annotations"), list)


def read(row: Mapping[str, Any], id: str) -> Example:
    """One annotated task as the Example that was exported, with the people's feedback.

    Responses are in their own order again and media are references. Every annotator
    adds ratings, critiques and a choice under their own name. Annotations that were
    skipped are listed in `extra["skipped"]`.

    Raises:
      BadRecord: not our task, nobody finished it, or an answer is missing or strange.
    """
    if not claims(row):
        raise BadRecord(
            "data.alanything",
            f"missing, or no annotations; the row has {sorted(row)}. Only tasks written "
            "by `label_studio_tasks.export`, exported as JSON, can be read.",
        )
    example, shown, dimensions = _ours(row["data"]["alanything"])
    order = shown["order"]
    names, skipped, ratings, critiques, choices = [], [], [], [], []
    for number, annotation in enumerate(row["annotations"]):
        where = f"annotations[{number}]"
        if not isinstance(annotation, Mapping):
            raise BadRecord(where, f"expected an object, got {annotation!r:.60}")
        rater = _rater(annotation, where)
        if annotation.get("was_cancelled"):
            skipped.append(rater)
            continue
        if rater in names:
            raise BadRecord(where, f"{rater} has two; delete one in Label Studio.")
        names.append(rater)
        answers = _answers(annotation, where)
        said = _Said(answers, order, rater, f"{where} by {rater}")
        ratings += [said.rating(slot, name) for slot in SLOTS for name in dimensions]
        critiques += [c for slot in SLOTS for c in said.critiques(slot)]
        choices.append(said.choice())
    if not names:
        why = f"all were skipped, by {skipped}" if skipped else "there are none"
        raise BadRecord("annotations", f"{why}: nothing to learn from the task.")
    extra = {**example.extra, "shown": shown}
    extra |= {"skipped": skipped} if skipped else {}
    example = dataclasses.replace(example, extra=extra)
    return feedback.add(example, ratings, critiques, choices)


def _ours(ours):
    """The exported example, how it was shown, what was graded."""
    try:
        example = store.from_json(ours["example"])
        shown = {"order": list(ours["order"]), "seed": ours["seed"]}
        dimensions = tuple(ours["dimensions"])
    except (KeyError, TypeError) as error:
        raise BadRecord(
            "data.alanything", f"changed since the export ({error!r})."
        ) from error
    if not isinstance(example, Example) or sorted(shown["order"]) != [0, 1]:
        raise BadRecord("data.alanything", f"changed since the export: {shown}.")
    return example, shown, dimensions


def _rater(annotation, where):
    """The annotator's email or name, as Label Studio's exports give it, or the number."""
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        name = " ".join(filter(None, (by.get("first_name"), by.get("last_name"))))
        by = by.get("email") or by.get("username") or name or by.get("id")
    if by is None or by == "":
        raise BadRecord(f"{where}.completed_by", "missing: who made it?")
    return str(by)


def _answers(annotation, where):
    """control name -> value, of an annotation's result."""
    out: dict[str, str] = {}
    for item in annotation.get("result") or ():
        value = item.get("value") if isinstance(item, Mapping) else None
        name = item.get("from_name") if isinstance(item, Mapping) else None
        said = value if isinstance(value, Mapping) else {}
        said = said.get("choices", said.get("text"))
        said = [said] if isinstance(said, str) else said
        if not (
            name and isinstance(said, list) and all(isinstance(t, str) for t in said)
        ):
            raise BadRecord(where, f"a result that is no choice or text: {item!r:.80}")
        if name in out:
            raise BadRecord(where, f"{name} is answered twice.")
        out[name] = "\n".join(said).strip()
    return out


@dataclasses.dataclass(frozen=True)
class _Said:
    """One annotation: its answers, and the order in which the responses were shown."""

    answers: Mapping[str, str]
    order: Sequence[int]
    rater: str
    where: str

    def _one_of(self, name, allowed):
        value = self.answers.get(name, "")
        if value not in allowed:
            said = f"is {value!r}" if value else "is not answered"
            raise BadRecord(self.where, f"{name} {said}; one of {[*allowed]} is due.")
        return value

    def _response(self, slot):
        return self.order[SLOTS.index(slot)]

    def rating(self, slot, dimension):
        grade = float(self._one_of(f"{slot}_{dimension}", GRADES))
        return Rating(self._response(slot), dimension, grade, rater=self.rater)

    def critiques(self, slot):
        """One, where anything was written."""
        fields = ("critique", "refinement", "rewrite")
        said = (self.answers.get(f"{slot}_{field}", "") for field in fields)
        critique, advice, rewrite = said
        if not (critique or advice or rewrite):
            return []
        text = feedback.critique_text(critique, advice)
        refined = Response((Message("assistant", (Part("text", text=rewrite),)),))
        better = refined if rewrite else None
        return [Critique(text, self._response(slot), None, better, self.rater)]

    def choice(self):
        value = self._one_of("choice", (*SLOTS, "tie"))
        votes = [0.5, 0.5]
        if value != "tie":
            votes = [float(n == self._response(value)) for n in range(2)]
        why = self.answers.get("choice_rationale") or None
        return feedback.choice(self.rater, votes, rationale=why)
