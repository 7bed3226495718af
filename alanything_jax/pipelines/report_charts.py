"""Markup that escapes by itself, and the report's charts: SVG that keeps its text size.

Charts are as wide as their place: positions are per cent, sizes are pixels.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

SERIES = {"base": "base", "aligned": "language feedback", "binary": "binary DPO"}
_MARKS = {
    "base": "M0-4.5A4.5 4.5 0 1 1 0 4.5A4.5 4.5 0 1 1 0-4.5Z",
    "aligned": "M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z",
    "binary": "M0-6L6 0L0 6L-6 0Z",
}
_LANE, _MAX_POINTS = 14, 300


class Markup(str):
    """Text that is HTML already; any other text is escaped when it becomes a child."""


def el(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. `class_` and `data_x` lose or change their underscore, None is left out.

    A child is Markup, or anything else in words; sequences of them are joined.
    """
    said = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.strip("_").replace("_", "-")
        said += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in ("img", "input", "br", "col"):
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Children one after another, escaped where they are not Markup."""
    out = []
    for child in children:
        if isinstance(child, Markup):
            out.append(child)
        elif isinstance(child, list | tuple):
            out.append(join(*child))
        elif child is not None:
            out.append(html.escape(str(child)))
    return Markup("".join(out))


@dataclasses.dataclass(frozen=True)
class Scale:
    """From values to per cent of a chart's width."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> str:
        """`value` as a position, kept inside the chart."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def scale(values: Sequence[float], ticks: int = 5, pad: float = 0.04) -> Scale:
    """A scale with round ticks that holds every value and a little air."""
    finite = [float(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    high = high if pad or high > low else low + 1.0
    air = (high - low or abs(high) or 1.0) * pad
    low, high = low - air, high + air
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return Scale(low, high, tuple(n * step for n in range(first, last + 1)))


def grid(axis: Scale, height: int) -> Markup:
    """Upright lines at the ticks."""
    lines = [
        el("line", x1=axis.at(t), x2=axis.at(t), y1=0, y2=height, class_="grid")
        for t in axis.ticks
    ]
    return join(lines)


def dots(row: Mapping[str, Sequence[float]], axis: Scale, said: str) -> Markup:
    """One row of dot-and-whisker: a lane per series that has [mean, low, high]."""
    lanes = [name for name in SERIES if name in row] or list(row)
    height, drawn = _LANE * len(lanes) + 14, []
    for lane, name in enumerate(lanes):
        mean, low, high = row[name]
        y = 7 + _LANE * lane + _LANE // 2
        ends = {"x1": axis.at(low), "x2": axis.at(high)}
        shape = _MARKS.get(name, _MARKS["aligned"])
        tip = f"{SERIES.get(name, name)}: {mean:.1f} [{low:.1f}, {high:.1f}]"
        caps = [
            el("line", x1=axis.at(v), x2=axis.at(v), y1=y - 4, y2=y + 4)
            for v in (low, high)
        ]
        dot = el("svg", el("path", d=shape), x=axis.at(mean), y=y, overflow="visible")
        bar = el("line", **ends, y1=y, y2=y)
        drawn.append(el("g", el("title", tip), bar, caps, dot, class_=f"s-{name}"))
    return el(
        "svg",
        grid(axis, height),
        drawn,
        height=height,
        class_="dots",
        role="img",
        aria_label=said,
    )


def axis_labels(axis: Scale, form: str = "{:g}") -> Markup:
    """The ticks' values, under their lines."""
    labels = [
        el("text", form.format(round(t, 10)), x=axis.at(t), y=13, text_anchor="middle")
        for t in axis.ticks
    ]
    return el("svg", labels, height=18, class_="axis", aria_hidden="true")


def legend(names: Sequence[str]) -> Markup:
    """Which mark is which series."""
    keys = []
    for name in names:
        line = el("line", x1=1, x2=25, y1=8, y2=8)
        shape = el("path", d=_MARKS[name], transform="translate(13 8)")
        key = el("svg", el("g", line, shape, class_=f"s-{name}"), width=26, height=16)
        keys.append(el("span", key, SERIES[name]))
    return el("div", keys, class_="legend", aria_hidden="true")


def curve(points: Sequence[Sequence[float]], name: str, said: str) -> Markup:
    """Loss by step: every step faint, their running mean strong."""
    points = [(float(s), float(v)) for s, v in points if math.isfinite(v)]
    # One wild step must not flatten the rest: the top is where 99 in 100 lie.
    top = sorted(v for _, v in points)[math.ceil(0.99 * len(points)) - 1]
    values = [min(v, top) for _, v in points]
    width, stride = max(1, len(values) // 12), max(1, len(values) // _MAX_POINTS)
    smooth = [
        sum(values[max(0, n - width + 1) : n + 1]) / min(n + 1, width)
        for n in range(len(values))
    ]
    down = scale([min(values), top], ticks=4, pad=0.08)
    across = scale([points[0][0], points[-1][0]], ticks=4, pad=0.0)

    def path(some, kind):
        line = "".join(
            f"{'L' if n else 'M'}{float(across.at(points[n][0])[:-1]) * 10:.1f} "
            f"{1000 - float(down.at(some[n])[:-1]) * 10:.1f}"
            for n in sorted({*range(0, len(points), stride), len(points) - 1})
        )
        return el("path", d=line, class_=kind)

    def rule(tick):
        y = f"{100 - float(down.at(tick)[:-1]):.2f}%"
        return el("line", x1=0, x2="100%", y1=y, y2=y, class_="grid")

    def label(tick):
        style = f"bottom:{down.at(tick)}"
        return el("span", f"{tick:.3g}", style=style)

    box = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none"}
    inner = el("svg", path(values, "raw"), path(smooth, "mean"), **box)
    plot = el(
        "svg",
        [rule(t) for t in down.ticks],
        inner,
        height=150,
        role="img",
        aria_label=said,
    )
    ticks = el(
        "div", [label(t) for t in down.ticks], class_="yticks", aria_hidden="true"
    )
    steps = el("div", axis_labels(across), class_="xticks")
    return el("div", ticks, plot, steps, class_=f"curve c-{name}")


def stack(parts: Sequence[tuple[str, float, str]], whole: float, said: str) -> Markup:
    """A bar of (what, how much, CSS class) parts; `whole` is the full width."""
    bits = [
        el("i", title=f"{what}: {size:g}", class_=kind, style=_width(size, whole))
        for what, size, kind in parts
        if size > 0
    ]
    return el("div", bits, class_="stack", role="img", aria_label=said)


def _width(size, whole):
    return f"width:{100 * size / whole if whole else 0:.2f}%"


def piano_roll(codes: Sequence[int], said: str) -> Markup:
    """A tune's notes, 2 * pitch + (1 if long) each, as bars in time."""
    beats = [1 + code % 2 for code in codes]
    starts = [sum(beats[:n]) for n in range(len(beats))]
    bars = [
        el("rect", x=16 * t + 1, y=81 - 6 * (c // 2), width=16 * b - 3, height=7, rx=2)
        for t, b, c in zip(starts, beats, codes, strict=True)
    ]
    lines = [
        el("line", x1=0, x2=256, y1=y, y2=y, class_="grid") for y in (18, 42, 66, 90)
    ]
    box = {"viewBox": "0 0 256 94", "role": "img", "aria_label": said}
    return el("svg", lines, bars, class_="sound", **box)


def wave(samples: Sequence[float], said: str, bars: int = 64) -> Markup:
    """The loudness of any sound in time."""
    size = max(1, math.ceil(len(samples) / bars))
    peaks = [
        max(abs(float(v)) for v in samples[n : n + size])
        for n in range(0, len(samples), size)
    ]
    loudest = max(peaks, default=0.0) or 1.0
    drawn = [
        el(
            "rect",
            x=4 * n,
            width=2.5,
            y=round(47 - 44 * p / loudest - 0.5, 1),
            height=round(88 * p / loudest + 1, 1),
        )
        for n, p in enumerate(peaks)
    ]
    box = {"viewBox": "0 0 256 94", "role": "img", "aria_label": said}
    return el("svg", drawn, class_="sound", **box)
