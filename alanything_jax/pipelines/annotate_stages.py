"""The judge's four stages: grades, choice per dimension, language feedback, choice.

A stage is a pair of pure functions: `ask(example, ...)` gives its questions, each with
the function that reads the reply, and `put(example, answers, ...)` the example with the
feedback in it. Grades and critiques look at one response alone; choices look at all, in
two orders whose votes are averaged, so that a judge who likes the first place decides
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from alanything_jax.data import feedback
from alanything_jax.data.encode import BadRecord
from alanything_jax.pipelines import annotate_rubrics as texts
from alanything_jax.pipelines.annotate_rubrics import Garbled, Rubrics
from alanything_jax.schema import Critique, Example, Message, Rating


class Echo(Garbled):
    """Language feedback that only repeats the response."""

    cause = "echo"


@dataclasses.dataclass(frozen=True)
class Ask:
    """A question and how its reply is read; `read` raises Garbled."""

    messages: tuple[Message, ...]
    read: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Who judges, under what name, and in how many presentation orders (1 or 2)."""

    rater: str
    orders: int = 2


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      ask: (example, rubrics, panel) -> {key: Ask}; raises BadRecord.
      put: (example, {key: answer}, rater) -> example.
    """

    name: str
    ask: Callable[[Example, Rubrics, Panel], Mapping[str, Ask]]
    put: Callable[[Example, Mapping[str, Any], str], Example]


def _rubrics(example, rubrics):
    """dimension -> rubric text for the example's modality."""
    kind = feedback.modality(example)
    if kind not in rubrics.sections:
        known = sorted(rubrics.sections)
        raise BadRecord("responses", f"no rubric for {kind}; there are {known}.")
    return {
        name: texts.fill(text, example, f"{kind}.txt, {name}")
        for name, text in rubrics.sections[kind].items()
    }


def _spoken(name):
    return name.replace("_", " ")


def _alone(which, number, example, rubrics, **given):
    """A question that shows one response."""
    shown = {"response": texts.shown(example.responses[number].messages)}
    shown |= {"prompt": texts.shown(example.prompt)}
    text = rubrics.questions[which]
    return texts.question(text, example, f"{which}.txt", shown, **given)


def _together(which, example, rubrics, panel, key, notes=(), **given):
    """A question in each order of presentation: as given, then reversed."""
    asks, straight = {}, range(len(example.responses))
    for number, order in enumerate((straight, straight[::-1])[: panel.orders]):
        shown = {"responses": texts.side_by_side(example, order, notes)}
        shown |= {"prompt": texts.shown(example.prompt)}
        text = rubrics.questions[which]
        given["count"] = str(len(order))
        messages = texts.question(text, example, f"{which}.txt", shown, **given)
        asks[f"{key}/{number}"] = Ask(messages, functools.partial(_read_choice, order))
    return asks


def _read_choice(order, text):
    said = texts.parse(text, ("why", "better"))
    return texts.better(said["better"], order), texts.renumber(said["why"], order)


# --- grades ---


def ask_grades(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question a response and dimension."""
    asks = {}
    for name, rubric in _rubrics(example, rubrics).items():
        for number in range(len(example.responses)):
            given = {"dimension": _spoken(name), "rubric": rubric}
            messages = _alone("rate", number, example, rubrics, **given)
            asks[f"{name}/{number}"] = Ask(messages, _read_grade)
    return asks


def _read_grade(text):
    said = texts.parse(text, ("why", "grade"))
    return texts.grade(said["grade"]), said["why"]


def put_grades(example: Example, answers: Mapping[str, Any], rater: str) -> Example:
    """Ratings 0-3 with rationales."""
    ratings = []
    for key, (score, why) in answers.items():
        name, number = key.rsplit("/", 1)
        ratings.append(Rating(int(number), name, float(score), why, rater))
    return feedback.add(example, ratings=ratings)


# --- choices ---


def ask_choices(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question a dimension and order."""
    asks = {}
    for name, rubric in _rubrics(example, rubrics).items():
        given = {"key": name, "dimension": _spoken(name), "rubric": rubric}
        asks |= _together("choose", example, rubrics, panel, **given)
    return asks


def put_choices(example: Example, answers: Mapping[str, Any], rater: str) -> Example:
    """One entry a dimension in `extra["choices"]`."""
    names = dict.fromkeys(key.rsplit("/", 1)[0] for key in answers)
    made = [_choice(answers, name, rater, name) for name in names]
    return feedback.add(example, choices=made)


def _choice(answers, prefix, rater, dimension):
    """The orders' votes averaged; the reason of an order that voted so comes first."""
    said = [v for key, v in answers.items() if key.rsplit("/", 1)[0] == prefix]
    votes = [sum(shares) / len(said) for shares in zip(*(v for v, _ in said))]
    by_order = [feedback.leading(shares) for shares, _ in said]
    chosen = feedback.leading(votes)
    reasons = [why for _, why in said]
    agreeing = [w for w, own in zip(reasons, by_order, strict=True) if own == chosen]
    best = (agreeing or reasons)[0]
    each = {"orders": by_order, "rationales": reasons}
    return feedback.choice(rater, votes, dimension, best, **each)


# --- language feedback ---


def ask_critiques(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question a response; it shows the grades that were given."""
    names = list(_rubrics(example, rubrics))
    asks = {}
    for number in range(len(example.responses)):
        grades = "\n".join(
            f"{_spoken(r.dimension)}: {r.score:g} ({r.rationale})"
            for r in example.feedback.ratings
            if (r.response, r.rater) == (number, panel.rater) and r.dimension in names
        )
        given = {"ratings": grades, "dimensions": ", ".join(names)}
        messages = _alone("critique", number, example, rubrics, **given)
        own = " ".join(message.text for message in example.responses[number].messages)
        asks[str(number)] = Ask(messages, functools.partial(_read_critique, own, names))
    return asks


def _read_critique(response, names, text):
    said = texts.parse(text, ("scope", "critique", "refinement"))
    scope = [s.strip().lower().replace(" ", "_") for s in said["scope"].split(",")]
    scope = [] if scope == ["none"] else scope
    if unknown := sorted(set(scope) - set(names)):
        raise Garbled(f"the scope names {unknown}, which is none of {names}")
    if echoes(said["critique"], response):
        raise Echo("the critique only repeats the response")
    return scope, said["critique"], said["refinement"]


def echoes(critique: str, response: str, share: float = 0.8) -> bool:
    """Whether one holds the other and at least `share` of the longer is the same."""
    said, own = (" ".join(t.lower().split()) for t in (critique, response))
    if not said or not own:
        return False
    short, long = sorted((said, own), key=len)
    return short in long and len(short) >= share * len(long)


def put_critiques(example: Example, answers: Mapping[str, Any], rater: str) -> Example:
    """A Critique a response, as one text; its scope, as a list, in `extra["scopes"]`."""
    critiques, scopes = [], []
    for key, (scope, critique, advice) in answers.items():
        text = feedback.critique_text(critique, advice, scope or ["none"])
        critiques.append(Critique(text, int(key), rater=rater))
        scopes.append({"rater": rater, "response": int(key), "scope": scope})
    out = feedback.add(example, critiques=critiques)
    listed = [*out.extra.get("scopes", ()), *scopes]
    return dataclasses.replace(out, extra={**out.extra, "scopes": listed})


# --- the overall choice ---


def ask_overall(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question an order; it shows what was said of each response."""
    rubric = "\n\n".join(
        f"{_spoken(name)}: {text}" for name, text in _rubrics(example, rubrics).items()
    )
    said: list[list[str]] = [[] for _ in example.responses]
    for c in example.feedback.critiques:
        if c.response is not None and c.rater == panel.rater:
            said[c.response].append(c.text)
    notes = ["\n".join(some) for some in said]
    given = {"key": "overall", "notes": notes, "rubric": rubric}
    return _together("overall", example, rubrics, panel, **given)


def put_overall(example: Example, answers: Mapping[str, Any], rater: str) -> Example:
    """The choice, and its reason as a Critique of all responses together."""
    entry = _choice(answers, "overall", rater, None)
    reason = Critique(entry["rationale"], rater=rater)
    return feedback.add(example, critiques=[reason], choices=[entry])


STAGES = (
    Stage("ratings", ask_grades, put_grades),
    Stage("choices", ask_choices, put_choices),
    Stage("critiques", ask_critiques, put_critiques),
    Stage("overall", ask_overall, put_overall),
)
