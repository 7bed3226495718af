"""The study's figures: a table in Markdown, and one picture of gains with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.pipelines.report_charts import el, scale

Done = Mapping[str, Sequence[Mapping[str, Any]]]


def figures(done: Done, samples: int = 2000) -> dict[str, Any]:
    """Per arm: mean scores and gains over the base of the same seed, with intervals.

    Args:
      done: arm -> one entry a seed: {"T1": [P scores], "T0": [P], "pairs": facts}.

    Returns:
      `{arm: {"T1": {"mean": x, "gain": [value, low, high], "seeds": [gain a seed]}, ...,
      "pairs": mean facts, "modalities": {task: gain at T=1}}}`. 95% bootstrap intervals
      draw seeds and prompts, both with replacement.
    """
    base = {t: np.array([entry[t] for entry in done["base"]]) for t in ("T1", "T0")}
    tasks = np.array(done["base"][0]["tasks"])
    report: dict[str, Any] = {}
    for arm, entries in done.items():
        found: dict[str, Any] = {"pairs": _mean_facts([e["pairs"] for e in entries])}
        for name in ("T1", "T0"):
            values = np.array([entry[name] for entry in entries])
            gains = values - base[name][: len(values)]
            found[name] = {
                "mean": round(float(values.mean()), 4),
                "gain": interval(gains, samples),
                "seeds": [round(float(g), 4) for g in gains.mean(1)],
            }
            if name == "T1":
                found["modalities"] = {
                    task: interval(gains[:, tasks == task], samples)
                    for task in dict.fromkeys(tasks.tolist())
                }
        report[arm] = found
    return report


def interval(gains: np.ndarray, samples: int, seed: int = 0) -> list[float]:
    """[mean, low, high] of [S, P] gains; seeds and prompts are drawn alike."""
    rng = np.random.default_rng(seed)
    seeds, prompts = gains.shape
    drawn = [
        gains[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)]
        for _ in range(samples)
    ]
    low, high = np.quantile([d.mean() for d in drawn], [0.025, 0.975])
    return [round(float(x), 4) for x in (gains.mean(), low, high)]


def _mean_facts(facts):
    """Facts about pairs, the mean over seeds."""
    keys = facts[0].keys() if facts and facts[0] else ()
    return {key: round(float(np.mean([f[key] for f in facts])), 3) for key in keys}


def table(report: Mapping[str, Any]) -> str:
    """Markdown, the best gain at T=1 first."""
    lines = [
        "| arm | pairs | chosen better / worse | score T=1 | gain T=1 | score T=0 | gain T=0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(report, key=lambda a: -report[a]["T1"]["gain"][0]):
        found, pairs = report[arm], report[arm]["pairs"]
        made = f"{pairs['count']:.0f}" if pairs else ""
        good = f"{pairs['better']:.2f} / {pairs['worse']:.2f}" if pairs else ""
        said = [
            f"{found[t]['mean']:.3f} | "
            + ("" if arm == "base" else _said(found[t]["gain"]))
            for t in ("T1", "T0")
        ]
        lines.append(f"| {arm} | {made} | {good} | {said[0]} | {said[1]} |")
    return "\n".join(lines) + "\n"


def _said(gain):
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)


def figure(report: Mapping[str, Any]) -> str:
    """An SVG: a row an arm, its gain at T=1 (dot) and T=0 (ring) with 95% intervals."""
    arms = [a for a in sorted(report, key=lambda a: -report[a]["T1"]["gain"][0])]
    arms.remove("base")
    ends = [x for arm in arms for t in ("T1", "T0") for x in report[arm][t]["gain"]]
    axis, top, step, left = scale([*ends, 0.0]), 34, 38, 190
    width, height = 760, top + step * len(arms) + 34
    at = _placed(axis, left, width - 24)
    parts: list[Any] = [
        el(
            "text",
            "Gain over the base, mean oracle score, 95% intervals",
            x=12,
            y=20,
            font_weight="bold",
        ),
    ]
    for tick in axis.ticks:
        parts += [
            el(
                "line",
                x1=at(tick),
                x2=at(tick),
                y1=top,
                y2=height - 30,
                stroke="#888" if tick == 0 else "#ddd",
            ),
            el("text", f"{tick:+.2f}", x=at(tick), y=height - 12, text_anchor="middle"),
        ]
    for n, arm in enumerate(arms):
        y = top + step * n + 16
        parts.append(el("text", arm, x=left - 14, y=y + 6, text_anchor="end"))
        for name, shift, fill in (("T1", 0, "#1b6ca8"), ("T0", 12, "#ffffff")):
            value, low, high = report[arm][name]["gain"]
            parts += [
                el(
                    "line",
                    x1=at(low),
                    x2=at(high),
                    y1=y + shift,
                    y2=y + shift,
                    stroke="#1b6ca8",
                    stroke_width=2,
                ),
                el(
                    "circle",
                    el("title", f"{arm} {name} {_said((value, low, high))}"),
                    cx=at(value),
                    cy=y + shift,
                    r=4.5,
                    fill=fill,
                    stroke="#1b6ca8",
                    stroke_width=2,
                ),
            ]
    key = el("text", "● T=1   ○ T=0", x=width - 24, y=20, text_anchor="end")
    return str(
        el(
            "svg",
            *parts,
            key,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {width} {height}",
            font_family="sans-serif",
            font_size=13,
            style="background:#fff",
        )
    )


def _placed(axis, left, right):
    """From values to x in pixels."""

    def at(value):
        return round(
            left + (right - left) * (value - axis.low) / (axis.high - axis.low), 1
        )

    return at
