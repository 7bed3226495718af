"""The report's words: better or worse only where an interval excludes zero."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from alanything_jax.pipelines.report_gallery import TASK_NAMES, task_name

TEMPERATURES = {
    "T1": ("T = 1", "every token sampled"),
    "T0": ("T = 0", "always the likeliest token"),
}
_WORDS = {
    "up": "scores higher",
    "down": "scores lower",
    "flat": "shows no significant change",
}


def verdict(gain: Sequence[float]) -> str:
    """What an interval [mean, low, high] of a difference allows to say: up, down, flat."""
    _, low, high = gain
    return "up" if low > 0 else "down" if high < 0 else "flat"


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    said: dict[str, list[str]] = {}
    for key, (name, _) in TEMPERATURES.items():
        if gain := interval(report.get(key), "gain"):
            said.setdefault(_WORDS[verdict(gain)], []).append(name)
    parts = [f"{words} at {' and '.join(names)}" for words, names in said.items()]
    if not parts:
        return "A model that learns from language feedback."
    return f"After language feedback the model {' and '.join(parts)}."


def changes(scores: Mapping[str, Any], key: str = "gain") -> dict[str, list[str]]:
    """The tasks that rose, did not change, fell, each with its gain in points."""
    out: dict[str, list[str]] = {"up": [], "flat": [], "down": []}
    for task, node in tasks(scores):
        if gain := interval(node, key):
            out[verdict(gain)].append(f"{task_name(task)} {points(gain[0])}")
    return out


def about_binary(scores: Mapping[str, Any]) -> str | None:
    """Where binary DPO stands, against the base and against language feedback."""
    gain, binary = interval(scores, "binary_gain"), interval(scores, "binary")
    if not gain:
        return None
    how = {"up": "above", "down": "below", "flat": "no significant change from"}
    said = f"{how[verdict(gain)]} the base ({points(gain[0])} {span(gain)})."
    if binary:
        said = f"{100 * binary[0]:.1f}, {said}"
    over, aligned = interval(scores, "over_binary"), interval(scores, "aligned")
    if over:
        where = {"up": "above", "down": "below", "flat": "not significantly apart from"}
        figures = f"({points(over[0])} {span(over)})"
        said += f" Language feedback is {where[verdict(over)]} it {figures}."
    elif aligned and binary:
        if aligned[1] > binary[2]:
            said += " Language feedback ends above it: their intervals do not touch."
        elif aligned[2] < binary[1]:
            said += " Language feedback ends below it: their intervals do not touch."
        else:
            said += (
                " Its interval overlaps language feedback's: neither is clearly ahead."
            )
    return said


def interval(node: Any, key: str) -> tuple[float, float, float] | None:
    """[mean, low, high] under a key; None where there is no such thing."""
    value = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    number = all(isinstance(v, numbers.Real) and math.isfinite(v) for v in value)
    return tuple(float(v) for v in value) if number else None


def tasks(scores: Any) -> list[tuple[str, Any]]:
    """The tasks' scores, in the order that people know."""
    known = [*TASK_NAMES]
    found = scores.get("modalities", {}) if isinstance(scores, Mapping) else {}
    return sorted(
        found.items(), key=lambda x: known.index(x[0]) if x[0] in known else 99
    )


def points(value: float) -> str:
    """A difference of scores, in points of 100."""
    return f"{100 * value:+.1f}".replace("-", "−")


def span(found: Sequence[float]) -> str:
    """Both ends of an interval, in points of 100."""
    low, high = (f"{100 * v:.1f}".replace("-", "−") for v in found[1:])
    return f"[{low}, {high}]"
