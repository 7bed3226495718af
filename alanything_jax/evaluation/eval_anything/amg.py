"""All-modality generation, second part: which modalities to use, and do they fit?

Paper: Align Anything, arXiv 2412.15838. T is text, V a picture or clip, A
sound. alpha is the share of people who would have answered in the modalities the model
chose, S_ij how well two outputs fit each other (0..1). S_i, how well one output follows
its instruction, is in `following`; `scores` puts the three together.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data.files import digest
from alanything_jax.evaluation.eval_anything import scores
from alanything_jax.evaluation.eval_anything.run import evaluate_rows
from alanything_jax.evaluation.eval_anything.templates import Templates
from alanything_jax.schema import Message, Modality, Part

KEYS = ("t", "i", "a", "ti", "ta", "ia", "tia")
PAIR_OF_KEY = {"ti": "TV", "ta": "TA", "ia": "VA"}
SECTIONS = {
    "response": "text",
    "image_instruction": "image",
    "audio_instruction": "audio",
}
NOTHING = ("", "none", "null", "n/a")

Scorer = Callable[[Part, Part], float | None]


# --- choosing modalities ---


@dataclasses.dataclass(frozen=True)
class Votes:
    """An instruction, and how people voted on the modalities of a good answer.

    `votes` are counts or shares by KEYS; a key that is not there has none.
    """

    id: str
    prompt: str
    votes: Mapping[str, float]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a model chose to answer with.

    Attributes:
      key: one of KEYS; "t" where nothing could be told, as in the released scripts.
      fields: per modality the text, or the instruction for a generator.
      told: False where the key is that default.
    """

    key: str
    fields: Mapping[Modality, str]
    told: bool = True


def selection_prompt(prompt: str, templates: Templates) -> tuple[Message, ...]:
    """How a model that writes instructions for generators is asked."""
    text = templates["select"].substitute(prompt=prompt)
    return (Message("user", (Part("text", text=text),)),)


def parse_selection(text: str) -> Selection:
    """The three fields of a reply, in any order; None, or a field left out, is not chosen.

    Example: `"[[response]]: A bell.\\n[[image_instruction]]: None\\n
    [[audio_instruction]]: a bell rings"` -> key "ta".
    """
    pieces = re.split(rf"\[\[({'|'.join(SECTIONS)})\]\]\s*:?", text)
    if len(pieces) == 1:
        plain = text.strip()
        return Selection("t", {"text": plain} if plain else {}, told=False)
    found = {}
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        content = re.sub(r"\[/?output_format\]", "", content).strip()
        left_as_is = re.fullmatch(r"<\w+>", content)
        if content.lower().strip(". ") not in NOTHING and not left_as_is:
            found[SECTIONS[name]] = content
    return Selection(_key(found) or "t", found, told=bool(found))


def selection_of(parts: Sequence[Part]) -> Selection:
    """What a model that makes its media itself has chosen; a clip counts as a picture."""
    there = [p.kind for p in parts if p.kind != "text" or (p.text or "").strip()]
    kinds = {"image" if kind == "video" else kind for kind in there}
    text = "".join(p.text or "" for p in parts if p.kind == "text")
    fields = {kind: text if kind == "text" else "" for kind in kinds}
    return Selection(_key(fields) or "t", fields, told=bool(fields))


def alpha(key: str, votes: Mapping[str, float]) -> float:
    """Share of the votes for the chosen modalities; a third of it for all three.

    Example: `alpha("ti", {"ti": 15, "t": 10})` -> 0.6; `alpha("tia", {"tia": 1})` -> 1/3.

    Raises ValueError: an unknown key, or no votes.
    """
    check_votes(votes)
    if key not in KEYS:
        raise ValueError(f"{key!r} is no choice of modalities; there are {KEYS}.")
    share = votes.get(key, 0) / math.fsum(votes.values())
    return share / 3 if key == "tia" else share


def pair_alphas(key: str, votes: Mapping[str, float]) -> dict[str, float]:
    """alpha_ij of the printed formula: the chosen pair's share; with three, a third each."""
    value = alpha(key, votes)
    pairs = scores.PAIRS if key == "tia" else (PAIR_OF_KEY.get(key),)
    return {pair: value if pair in pairs else 0.0 for pair in scores.PAIRS}


def check_votes(votes: Mapping[str, float]) -> None:
    """Votes are finite, not negative, not all zero, and for known keys.

    Raises ValueError: names what is wrong.
    """
    if strange := set(votes) - set(KEYS):
        raise ValueError(f"votes for unknown keys {sorted(strange)}; there are {KEYS}.")
    if not all(math.isfinite(v) and v >= 0 for v in votes.values()):
        raise ValueError(f"votes are finite and at least 0, got {dict(votes)}.")
    if not sum(votes.values()):
        raise ValueError("nobody voted.")


def evaluate_selection(
    rows: Sequence[Votes], chosen: Mapping[str, Selection | None]
) -> dict[str, Any]:
    """alpha over all instructions, and per pair; None or no such id is counted missing.

    Returns `{"alpha": Mean, "alphas": {pair: Mean}, "chosen": {key: count},
    "defaulted": how many told nothing and count as "t"}`.
    """
    picks = [(row, chosen.get(row.id)) for row in rows]
    pairs = [s and pair_alphas(s.key, row.votes) for row, s in picks]
    return {
        "alpha": scores.mean(s and alpha(s.key, row.votes) for row, s in picks),
        "alphas": {
            pair: scores.mean(some and some[pair] for some in pairs)
            for pair in scores.PAIRS
        },
        "chosen": dict(collections.Counter(s.key for _, s in picks if s)),
        "defaulted": sum(not s.told for _, s in picks if s),
    }


def _key(fields):
    return "".join(m[0] for m in ("text", "image", "audio") if m in fields)


# --- synergy ---


@dataclasses.dataclass(frozen=True)
class Output:
    """What was made for one instruction: parts by "T", "V", "A", and what was not, why."""

    id: str
    parts: Mapping[str, Part]
    problems: Mapping[str, str] = dataclasses.field(default_factory=dict)


def evaluate_synergy(
    outputs: Sequence[Output],
    scorer: Scorer,
    path: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """S_ij per pair, by a scorer of how well two parts fit, 0..1.

    A pair with a part missing, or whose scorer gives None or NaN, is counted and left
    out.

    Returns `{"synergy": {pair: Mean}, "problems": {reason: count}, "rows": {...}}`.

    Raises ValueError: a score outside 0..1 (a reward without its sigmoid).
    """

    def ask(some):
        return {output.id: _fit(output, scorer) for output in some}

    def stamp(output):
        return digest([output.parts.get(name) for name in "TVA"])

    how = {"settings": settings, "stamp": stamp, "batch_size": 1}
    rows = evaluate_rows(outputs, ask, path, **how)
    lacking = collections.Counter(r for o in outputs for r in o.problems.values())
    means = {p: scores.mean(row.get(p) for row in rows.values()) for p in scores.PAIRS}
    return {"synergy": means, "problems": dict(lacking), "rows": rows}


def _fit(output, scorer):
    found = {}
    for pair in scores.PAIRS:
        parts = [output.parts.get(name) for name in pair]
        value = None if any(p is None for p in parts) else scorer(*parts)
        value = None if value is None or math.isnan(value) else float(value)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"{output.id}: the synergy of {pair} is {value}, not within 0..1; a "
                "reward model's score goes through a sigmoid first."
            )
        found[pair] = value
    return found
