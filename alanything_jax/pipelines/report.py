"""The demo's page: what rose and what did not, and answers before and after to look at.

One file that needs no network and runs no script. Words follow from the intervals alone:
better or worse only where an interval excludes zero.
"""

from __future__ import annotations

import math
import numbers
import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.pipelines import report_charts as charts
from alanything_jax.pipelines.report_charts import SERIES, Markup, el, join
from alanything_jax.pipelines.report_gallery import show_all, task_name
from alanything_jax.pipelines.report_words import (
    TEMPERATURES,
    about_binary,
    changes,
    headline,
    interval,
    points,
    span,
    tasks,
    verdict,
)
from alanything_jax.training.run_dir import write_aside

TEMPLATE = Path(__file__).parents[1] / "data" / "templates" / "report" / "page.html"
TITLE = "alanything_jax demo"
_CURVES = {
    "base": ("Base model", "learns the playground from demonstrations of mixed skill"),
    "critic": ("Critic", "learns to say what is wrong with an answer"),
    "align": ("Language feedback", "prefers the refined answer to its own first one"),
    "binary": ("Binary DPO", "prefers the answer that an annotator chose"),
}
_CRITIC = {
    "verdict_accuracy": ("verdict accuracy", "how often its good or bad is right"),
    "kappa": ("Cohen's kappa", "agreement beyond chance: 0 is chance, 1 is perfect"),
    "precision": ("precision", "the part of its objections that is right"),
    "recall": ("recall", "the part of what is wrong that it objects to"),
}
_SIGN = {"up": "▲", "down": "▼", "flat": "●"}


def write_page(
    path: str | Path,
    report: Mapping[str, Any],
    curves: Mapping[str, Sequence[Sequence[float]]],
    gallery: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page; what the report lacks is left out.

    Args:
      path: the HTML file; the model is taken to be `export/` beside it.
      report: `runs/demo/report.json`; intervals are [mean, low, high], scores 0 .. 1.
        `over_binary` beside `gain`, if given, is aligned minus binary.
      curves: name -> (step, loss) pairs; base, critic, align, binary.
      gallery: `task`, `prompt` (messages), `before`, `after`, `refined` (responses, the
        last may be None), `critique`, `score_before`, `score_after`.
    """
    sections = [
        ("scores", "Scores", "Score by task, before and after", _scores(report)),
        ("gallery", "Gallery", "Before, the critic's words, after", _shown(gallery)),
        ("curves", "Learning", "Learning curves", _learning(curves)),
        ("yield", "Yield", "From answers to preference pairs", _yield(report)),
        ("critic", "Critic", "How good is the critic?", _critic(report)),
        ("export", "Export", "Is the exported model the same model?", _verify(report)),
        ("facts", "Facts", "Facts and seeds", _facts(report)),
        ("next", "Go on", "How to go on", _next(Path(path), gallery)),
    ]
    sections = [section for section in sections if section[3]]
    body = [
        el("section", el("h2", title), content, id=name)
        for name, _, title, content in sections
    ]
    links = [el("a", short, href=f"#{name}") for name, short, *_ in sections]
    page = string.Template(TEMPLATE.read_text("utf-8")).substitute(
        title=TITLE,
        headline=join(headline(report)),
        summary=_summary(report),
        nav=join(links),
        sections=join(body),
        maker="alanything demo",
    )
    write_aside(Path(path), page.encode("ascii", "xmlcharrefreplace").decode())


def _badge(gain):
    kind = verdict(gain)
    text = f"{_SIGN[kind]} {points(gain[0])}"
    return el("span", text, class_=f"badge {kind}", title=f"gain {span(gain)}")


def _summary(report):
    cards, compared = [], 0
    for key, (name, how) in TEMPERATURES.items():
        scores = report.get(key)
        gain = interval(scores, "gain")
        if not gain:
            continue
        found = changes(scores)
        compared += sum(map(len, found.values()))
        titles = {"up": "Rose", "flat": "No significant change", "down": "Fell"}
        lines = [
            [el("dt", titles[kind], class_=kind), el("dd", ", ".join(some) or "none")]
            for kind, some in found.items()
            if any(found.values())
        ]
        if said := about_binary(scores):
            lines.append([el("dt", "Binary DPO", class_="binary"), el("dd", said)])
        cards.append(
            el(
                "div",
                el("h2", name, el("small", how)),
                _big(scores, gain),
                el("dl", lines) if lines else None,
                class_="card result",
            )
        )
    if not cards:
        return Markup("")
    note = (
        "Scores run from 0 to 100, one check of every attribute that the prompt asks "
        "for, on prompts kept apart from training. Brackets are 95% intervals; a change "
        "counts only if its interval excludes zero."
    )
    if compared:
        note += f" Of {compared} comparisons one in twenty may do so by chance."
    return join(el("div", cards, class_="results"), el("p", note, class_="note"))


def _big(scores, gain):
    base, aligned = interval(scores, "base"), interval(scores, "aligned")
    moved = base and aligned and f"{100 * base[0]:.1f} → {100 * aligned[0]:.1f}"
    return el(
        "p",
        el("b", points(gain[0]), class_=verdict(gain)),
        el("span", "points ", span(gain), el("br"), moved or None),
        class_="big",
    )


def _scores(report):
    panels, rows = {}, {}
    for key in TEMPERATURES:
        scores = report.get(key)
        if not isinstance(scores, Mapping):
            continue
        for task, node in [(None, scores), *tasks(scores)]:
            found = {s: v for s in SERIES if (v := interval(node, s))}
            if found:
                panels.setdefault(key, []).append((task, node, _hundred(found)))
                rows[key, task] = node
    if not panels:
        return None
    every = [row for some in panels.values() for *_, row in some]
    axis = charts.scale([v for row in every for x in row.values() for v in x], 8)
    names = [name for name in SERIES if any(name in row for row in every)]
    drawn = [
        el(
            "div",
            el("h3", TEMPERATURES[key][0], el("small", TEMPERATURES[key][1])),
            [_score_row(task, node, row, axis) for task, node, row in some],
            el("div", charts.axis_labels(axis), class_="row last"),
            class_="card panel",
        )
        for key, some in panels.items()
    ]
    table = el(
        "details", el("summary", "The figures"), _figures(rows), class_="figures"
    )
    return join(charts.legend(names), el("div", drawn, class_="panels"), table)


def _hundred(row):
    return {name: [100 * v for v in interval] for name, interval in row.items()}


def _score_row(task, node, row, axis):
    name = "all tasks" if task is None else task_name(task)
    gain = interval(node, "gain")
    said = ", ".join(
        f"{SERIES[s]} {m:.1f} [{low:.1f}, {high:.1f}]"
        for s, (m, low, high) in row.items()
    )
    kind = "row all" if task is None else "row"
    label = el("span", name, class_="label")
    badge = _badge(gain) if gain else el("span")
    return el(
        "div", label, charts.dots(row, axis, f"{name}: {said}"), badge, class_=kind
    )


def _figures(rows):
    columns = {"base": "base", "aligned": "language feedback", "gain": "gain"}
    columns |= {"binary": "binary DPO", "binary_gain": "binary gain"}
    columns = {
        key: name
        for key, name in columns.items()
        if any(interval(node, key) for node in rows.values())
    }

    def cell(node, key):
        value = interval(node, key)
        if not value:
            return el("td", "–")
        mean = points(value[0]) if "gain" in key else f"{100 * value[0]:.1f}"
        return el("td", mean, " ", el("small", span(value)))

    lines = [
        el(
            "tr",
            el("th", "all tasks" if task is None else task_name(task), scope="row"),
            el("td", TEMPERATURES[temperature][0]),
            [cell(node, key) for key in columns],
        )
        for (temperature, task), node in rows.items()
    ]
    return _table(["", "", *columns.values()], lines, "numbers")


def _table(heads, lines, kind=None):
    head = el("tr", [el("th", name, scope="col") for name in heads])
    table = el("table", el("thead", head), el("tbody", lines), class_=kind)
    return el("div", table, class_="scroll")


def _shown(entries):
    if not entries:
        return None
    note = "Prompts in the run's own order, two of each task open; scores of 100."
    return join(el("p", note, class_="note"), show_all(entries))


def _learning(curves):
    drawn = []
    for name, steps in curves.items():
        kept = [(s, v) for s, v in steps if math.isfinite(v)]
        if len(kept) < 2:
            continue
        title, what = _CURVES.get(name, (name, None))
        ends = f"loss {kept[0][1]:.3g} → {kept[-1][1]:.3g}, {kept[-1][0]:g} steps"
        plot = charts.curve(kept, name, f"{title}: {ends}")
        head = el("h3", title, el("small", what) if what else None)
        drawn.append(el("div", head, plot, el("p", ends, class_="note"), class_="card"))
    return el("div", drawn, class_="plots") if drawn else None


def _yield(report):
    lines, stages = [], [dict(s) for s in report.get("yield") or ()]
    totals = [s.get("kept", 0) + sum((s.get("dropped") or {}).values()) for s in stages]
    for stage, total in zip(stages, totals, strict=True):
        kept, dropped = stage.get("kept", 0), stage.get("dropped") or {}
        parts = [("kept", kept, "kept")]
        parts += [(why, count, "lost") for why, count in dropped.items()]
        said = f"{kept} of {total} kept"
        bar = charts.stack(parts, max(totals), said)
        why = [
            el("li", el("b", f"{n:,}"), " ", what) for what, n in dropped.items() if n
        ]
        lines.append(
            el(
                "tr",
                el("th", stage.get("stage", "?"), scope="row"),
                el("td", bar, class_="wide"),
                el("td", f"{kept:,}", el("small", f" of {total:,}"), class_="figure"),
                el("td", el("ul", why) if why else "nothing dropped"),
            )
        )
    if not lines:
        return None
    return el(
        "div",
        _table(["stage", "", "kept", "dropped, and why"], lines, "stages"),
        class_="card",
    )


def _critic(report):
    critic = report.get("critic") or {}
    rows = [
        (name, what, interval(critic, key))
        for key, (name, what) in _CRITIC.items()
        if interval(critic, key)
    ]
    for name, node in (critic.get("dimensions") or {}).items():
        nodes = node if isinstance(node, Mapping) else {"verdict_accuracy": node}
        for key in nodes:
            known = _CRITIC.get(key, (key, ""))[0]
            if found := interval(nodes, key):
                rows.append((name, f"{known} on this dimension", found))
    if not rows:
        return None
    axis = charts.scale([0.0, 1.0, *(v for *_, x in rows for v in x)], pad=0.0)
    drawn = [
        el(
            "div",
            el("span", name, el("small", what), class_="label"),
            charts.dots({"critic": found}, axis, f"{name} {found[0]:.2f}"),
            el(
                "span",
                f"{found[0]:.2f}",
                el("small", f" [{found[1]:.2f}, {found[2]:.2f}]"),
            ),
            class_="row",
        )
        for name, what, found in rows
    ]
    last = el("div", charts.axis_labels(axis), class_="row last")
    return el("div", drawn, last, class_="card panel critic")


def _verify(report):
    signs = {True: ("✓", "up", "passed"), False: ("✗", "down", "failed")}
    lines = []
    for name, passed, *detail in report.get("verify") or ():
        sign, kind, word = signs.get(passed, ("–", "flat", "not checked"))
        mark = el("span", f"{sign} {word}", class_=f"badge {kind}")
        lines.append(
            el("tr", el("td", mark), el("th", name, scope="row"), el("td", *detail))
        )
    return (
        el("div", _table(["", "check", "found"], lines, "checks"), class_="card")
        if lines
        else None
    )


def _facts(report):
    recipe, minutes = report.get("recipe") or {}, report.get("minutes") or {}
    facts = [
        el("div", el("dt", _plain(k)), el("dd", _value(v))) for k, v in recipe.items()
    ]
    out = [el("dl", facts, class_="card facts")] if facts else []
    spent = {k: v for k, v in minutes.items() if isinstance(v, numbers.Real)}
    spent.pop("total", None)
    if whole := sum(spent.values()):
        bars = [
            el(
                "tr",
                el("th", _plain(name), scope="row"),
                el("td", charts.stack([(name, v, "kept")], max(spent.values()), name)),
                el("td", f"{v:.1f} min", class_="figure"),
            )
            for name, v in spent.items()
        ]
        head = el("h3", "Time", el("small", f"{whole:.1f} minutes in all"))
        out.append(el("div", head, _table(["", "", ""], bars, "time"), class_="card"))
    return el("div", out, class_="pair") if out else None


def _plain(name):
    return str(name).replace("_", " ")


def _value(value):
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _next(path, entries):
    model = shlex.quote(str(path.parent / "export"))
    prompt = "draw two red circles left and one blue square top"
    for entry in entries:
        parts = [part for message in entry["prompt"] for part in message.parts]
        if entry["task"] == "t2i" and all(part.kind == "text" for part in parts):
            prompt = " ".join(part.text or "" for part in parts).strip()
            break
    steps = {
        "Talk to the model": f"alanything chat --model {model}",
        "Make answers, and files of their media": (
            f"alanything generate --model {model} --prompt {shlex.quote(prompt)}"
        ),
    }
    return el(
        "div",
        [el("div", el("h3", what), el("pre", code)) for what, code in steps.items()],
        class_="card",
    )
