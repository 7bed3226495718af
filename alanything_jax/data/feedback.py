"""What judges and people say of an Example, put into it in one way.

`extra["choices"]` lists every choice that was made, by whom and along which dimension:

    {"rater": "ann", "dimension": None, "chosen": 1, "votes": [0.0, 1.0],
     "rationale": "..."}

`dimension` None is the overall choice; `chosen` None is a tie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alanything_jax.schema import Critique, Example, Feedback, Message, Part, Rating

_SHARED = ("prompt_following", "objective_rules", "information_richness", "safety")

# What is rated for each modality of the responses, 0 (worst) to 3.
DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "text": (*_SHARED, "clarity"),
    "image": (*_SHARED, "aesthetics"),
    "audio": (
        "prompt_following",
        "audio_quality",
        "consistency",
        "information_richness",
        "safety",
    ),
    "video": (
        *_SHARED,
        "aesthetics",
        "temporal_consistency",
        "content_coherence",
        "motion_naturalness",
    ),
    "cross_modal": (*_SHARED, "clarity", "modality_consistency"),
}


def modality(example: Example) -> str:
    """Which rubric fits the responses: their one kind, else "cross_modal"."""
    kinds = {
        part.kind
        for response in example.responses
        for message in response.messages
        for part in message.parts
    }
    return kinds.pop() if len(kinds) == 1 else "cross_modal"


def critique_text(critique: str, advice: str = "", scope: Sequence[str] = ()) -> str:
    """Language feedback as one text, the form a critic learns.

    "Scope: clarity / Critique: ... / Refinement: ...", each on its own line.
    """
    named = {"Scope": ", ".join(scope), "Critique": critique, "Refinement": advice}
    return "\n".join(f"{name}: {said}" for name, said in named.items() if said)


def transcript(messages: Sequence[Message], named: bool) -> tuple[Part, ...]:
    """The parts of several messages in order, each message's role before it if `named`."""
    out: list[Part] = []
    for number, message in enumerate(messages):
        if named:
            lead = "\n\n" if number else ""
            out.append(Part("text", text=f"{lead}{message.role}: "))
        out += message.parts
    return tuple(out)


def leading(votes: Sequence[float]) -> int | None:
    """The response with the largest share of votes; None if two have it."""
    best = max(votes)
    first = [n for n, share in enumerate(votes) if share > best - 1e-9]
    return first[0] if len(first) == 1 else None


def choice(
    rater: str,
    votes: Sequence[float],
    dimension: str | None = None,
    rationale: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One entry of `extra["choices"]`; `votes` are shares of the K responses, sum 1."""
    return {
        "rater": rater,
        "dimension": dimension,
        "chosen": leading(votes),
        "votes": [float(share) for share in votes],
        "rationale": rationale,
        **more,
    }


def add(
    example: Example,
    ratings: Iterable[Rating] = (),
    critiques: Iterable[Critique] = (),
    choices: Iterable[Mapping[str, Any]] = (),
) -> Example:
    """The example with more feedback; what it had stays.

    With overall choices among the new ones, `feedback.chosen` is the one most voted for
    (None where they tie), `margin` its lead in shares of the votes. The choice the source
    came with moves to `extra["choices"]`.
    """
    old = example.feedback
    listed = list(example.extra.get("choices", ()))
    new = [dict(entry) for entry in choices]
    overall = [entry for entry in new if entry["dimension"] is None]
    changed: dict[str, Any] = {
        "ratings": (*old.ratings, *ratings),
        "critiques": (*old.critiques, *critiques),
    }
    if overall:
        size = len(example.responses)
        if old.chosen is not None and not any(c["dimension"] is None for c in listed):
            votes = [float(n == old.chosen) for n in range(size)]
            listed.append(choice(old.rater or "source", votes, margin=old.margin))
        votes = [
            sum(c["votes"][n] for c in overall) / len(overall) for n in range(size)
        ]
        ranked = sorted(votes, reverse=True)
        changed["chosen"] = leading(votes)
        changed["margin"] = ranked[0] - ranked[1] if size > 1 else None
        changed["rater"] = ", ".join(entry["rater"] for entry in overall)
    extra = dict(example.extra)
    if listed or new:
        extra["choices"] = listed + new
    feedback: Feedback = dataclasses.replace(old, **changed)
    return dataclasses.replace(example, feedback=feedback, extra=extra)
