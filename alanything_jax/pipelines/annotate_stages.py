"""The judge's four stages: grades, choice per dimension, language feedback, choice.

A stage is a pair of pure functions: `ask(example, ...)` gives its questions, each with
the function that reads the reply, and `put(example, answers, ...)` the example with the
feedback in it. Grades and critiques look at one response alone; choices look at all, in
two orders whose votes are averaged, so that a judge who likes the first place decides
nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from alanything_jax.data import feedback
from alanything_jax.data.encode import BadRecord
from alanything_jax.pipelines import annotate_rubrics as texts
from alanything_jax.pipelines.annotate_rubrics import Garbled, Rubrics
from alanything_jax.schema import Critique, Example, Message, Rating


class Echo(ValueError):
    """Language feedback that only repeats the response."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A question and how its reply is read; `read` raises Garbled or Echo."""

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
        raise BadRecord(
            "responses", f"no rubric for {kind}; there are {sorted(rubrics.sections)}."
        )
    return {
        name: texts.fill(text, example, f"{kind}.txt, {name}")
        for name, text in rubrics.sections[kind].items()
    }


def _orders(example, count):
    """The presentation orders: as given, then reversed."""
    given = tuple(range(len(example.responses)))
    return (given, given[::-1])[:count]


# --- grades ---


def ask_grades(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question a response and dimension."""
    asks = {}
    for name, rubric in _rubrics(example, rubrics).items():
        for number in range(len(example.responses)):
            messages = texts.question(
                rubrics.questions["rate"],
                example,
                "rate.txt",
                {
                    "prompt": texts.prompt_parts(example),
                    "response": texts.response_parts(example, number),
                },
                dimension=name.replace("_", " "),
                rubric=rubric,
            )
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
        for number, order in enumerate(_orders(example, panel.orders)):
            messages = texts.question(
                rubrics.questions["choose"],
                example,
                "choose.txt",
                {
                    "prompt": texts.prompt_parts(example),
                    "responses": texts.side_by_side(example, order),
                },
                count=str(len(order)),
                dimension=name.replace("_", " "),
                rubric=rubric,
            )
            asks[f"{name}/{number}"] = Ask(messages, _choice_reader(order))
    return asks


def _choice_reader(order):
    def read(text):
        said = texts.parse(text, ("why", "better"))
        return texts.better(said["better"], order), texts.renumber(said["why"], order)

    return read


def put_choices(example: Example, answers: Mapping[str, Any], rater: str) -> Example:
    """One entry a dimension in `extra["choices"]`."""
    names = dict.fromkeys(key.rsplit("/", 1)[0] for key in answers)
    return feedback.add(
        example, choices=[_choice(answers, name, rater, name) for name in names]
    )


def _choice(answers, prefix, rater, dimension):
    """The orders' votes averaged; the reason of an order that voted so comes first."""
    said = [v for key, v in answers.items() if key.rsplit("/", 1)[0] == prefix]
    votes = [sum(shares) / len(said) for shares in zip(*(v for v, _ in said))]
    by_order = [feedback.leading(shares) for shares, _ in said]
    chosen = feedback.leading(votes)
    reasons = [why for _, why in said]
    agreeing = [w for w, own in zip(reasons, by_order, strict=True) if own == chosen]
    best = (agreeing or reasons)[0]
    return feedback.choice(
        rater, votes, dimension, best, orders=by_order, rationales=reasons
    )


# --- language feedback ---


def ask_critiques(example: Example, rubrics: Rubrics, panel: Panel) -> dict[str, Ask]:
    """One question a response; it shows the grades that were given."""
    names = list(_rubrics(example, rubrics))
    asks = {}
    for number in range(len(example.responses)):
        grades = "\n".join(
            f"{r.dimension.replace('_', ' ')}: {r.score:g} ({r.rationale})"
            for r in example.feedback.ratings
            if (r.response, r.rater) == (number, panel.rater) and r.dimension in names
        )
        messages = texts.question(
            rubrics.questions["critique"],
            example,
            "critique.txt",
            {
                "prompt": texts.prompt_parts(example),
                "response": texts.response_parts(example, number),
            },
            ratings=grades,
            dimensions=", ".join(names),
        )
        own = " ".join(message.text for message in example.responses[number].messages)
        asks[str(number)] = Ask(messages, _critique_reader(own, names))
    return asks


def _critique_reader(response, names):
    def read(text):
        said = texts.parse(text, ("scope", "critique", "refinement"))
        scope = [s.strip().lower().replace(" ", "_") for s in said["scope"].split(",")]
        scope = [] if scope == ["none"] else scope
        if unknown := sorted(set(scope) - set(names)):
            raise Garbled(f"the scope names {unknown}, which is none of {names}")
        if echoes(said["critique"], response):
            raise Echo("the critique only repeats the response")
        return scope, said["critique"], said["refinement"]

    return read


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
        f"{name.replace('_', ' ')}: {text}"
        for name, text in _rubrics(example, rubrics).items()
    )
    notes = [
        "\n".join(
            c.text
            for c in example.feedback.critiques
            if (c.response, c.rater) == (number, panel.rater)
        )
        for number in range(len(example.responses))
    ]
    asks = {}
    for number, order in enumerate(_orders(example, panel.orders)):
        messages = texts.question(
            rubrics.questions["overall"],
            example,
            "overall.txt",
            {
                "prompt": texts.prompt_parts(example),
                "responses": texts.side_by_side(example, order, notes),
            },
            count=str(len(order)),
            rubric=rubric,
        )
        asks[f"overall/{number}"] = Ask(messages, _choice_reader(order))
    return asks


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
