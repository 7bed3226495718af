"""The report's gallery: prompt, answer before, the critic's words, answer after.

Media become data: URIs. What prompts, models and critics say is only ever text.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax import schema
from alanything_jax.data import media
from alanything_jax.data.media import as_file, mime_of
from alanything_jax.pipelines import report_charts as charts
from alanything_jax.pipelines.report_charts import Markup, el, join
from alanything_jax.playground.lexicon import TUNE
from alanything_jax.playground.oracle import says_good

TASK_NAMES = {
    "t2i": "text to image",
    "i2t": "image to text",
    "t2a": "text to audio",
    "a2t": "audio to text",
    "t2v": "text to video",
    "v2t": "video to text",
    "ti2ti": "edit an image",
    "choose": "choose the modality",
}
_OPEN, _STILLS = 2, 6


def show_all(entries: Sequence[Mapping[str, Any]]) -> Markup:
    """Every entry by task, with pills that show one task; no script."""
    refines = any(entry.get("refined") is not None for entry in entries)
    tasks = sorted({entry["task"] for entry in entries}, key=_order)
    pills, rules, groups = [_pill(0, "all", len(entries), True)], [], []
    for n, task in enumerate(tasks, 1):
        some = [entry for entry in entries if entry["task"] == task]
        pills.append(_pill(n, task_name(task), len(some), False))
        rules.append(f"#g{n}:checked~.groups>:not(.g{n}){{display:none}}")
        cards = [_card(entry, refines) for entry in some]
        more = len(cards) - _OPEN
        rest = more > 0 and el(
            "details", el("summary", f"{more} more"), cards[_OPEN:], class_="more"
        )
        head = el("h3", task_name(task))
        groups.append(el("div", head, cards[:_OPEN], rest or None, class_=f"g{n}"))
    return el(
        "div",
        el("style", Markup("".join(rules))),
        *pills,
        el("div", groups, class_="groups"),
        class_="gallery",
    )


def task_name(task: str) -> str:
    """A task as people say it."""
    return TASK_NAMES.get(task, task)


def _order(task):
    known = list(TASK_NAMES)
    return (known.index(task) if task in known else len(known), task)


def _pill(n, name, count, checked):
    kind = {"type": "radio", "name": "task", "class_": "pick"}
    label = el("label", name, el("small", count), for_=f"g{n}")
    return join(el("input", **kind, id=f"g{n}", checked=checked), label)


def _card(entry, refines):
    before, after = float(entry["score_before"]), float(entry["score_after"])
    change = round(100 * after) - round(100 * before)
    kind = "up" if change > 0 else "down" if change < 0 else "flat"
    steps = [
        _step("prompt", "Prompt", None, show(entry["prompt"])),
        _step("before", "Before", before, show(entry["before"].messages)),
        _step("critic", "The critic says", None, _critique(entry.get("critique"))),
    ]
    if refines:
        refined = entry.get("refined")
        none = el("p", "(not refined)", class_="note")
        shown = none if refined is None else show(refined.messages)
        steps.append(_step("refined", "Refined on its advice", None, shown))
    badge = el("span", f"{change:+d}".replace("-", "−"), class_=f"badge {kind}")
    shown = show(entry["after"].messages)
    steps.append(_step("after", "After", after, shown, badge))
    return el("article", steps, class_="card entry five" if refines else "card entry")


def _step(kind, title, score, *children):
    shown = score is not None and el("b", f"{100 * score:.0f}", title="score of 100")
    *content, last = children
    badge = last if len(children) > 1 else None
    content = content or [last]
    head = el("h4", el("span", title), shown or None, badge)
    return el("div", head, *content, class_=f"step {kind}")


def _critique(text):
    """A critic's words; those of the playground's grammar as a verdict and its reasons."""
    text = " ".join((text or "").split())
    if not text:
        return el("p", "(it said nothing)", class_="note")
    good = says_good(text)
    if good is None:
        return el("blockquote", text)
    said = [part.strip(" .") for part in text.split(" . ")]
    verdict = "good" if good else "bad"
    sign = "up" if good else "down"
    listed = [_reason(part) for part in said if not part.startswith("verdict ")]
    return el(
        "blockquote",
        el("span", f"verdict: {verdict}", class_=f"badge {sign}"),
        el("ul", listed) if listed else None,
    )


def _reason(text):
    """A line of a critique; what it finds otherwise than wanted stands out."""
    pieces = re.split(r"(\w+ (?:but \w+|missing))", text)
    return el("li", [el("b", p) if n % 2 else p for n, p in enumerate(pieces)])


def show(messages: Sequence[schema.Message]) -> Markup:
    """A message's parts; of several messages, each after its role."""
    out = []
    for message in messages:
        if len(messages) > 1:
            out.append(el("p", message.role, class_="role"))
        for part in message.parts:
            if part.kind != "text":
                out.append(_medium(part))
            elif (part.text or "").strip():
                out.append(el("p", part.text.strip(), class_="text"))
    return join(out) or el("p", "(nothing)", class_="note")


def _medium(part):
    try:
        raw = as_file(part)
        return {"image": _image, "audio": _audio, "video": _video}[part.kind](raw)
    except (media.MediaError, OSError, ValueError) as error:
        return el("p", f"({part.kind} that cannot be shown: {error})", class_="note")


def _image(raw):
    return el("img", src=_uri(raw, "image"), alt="picture", class_="picture")


def _audio(raw):
    uri = _uri(raw, "audio")
    samples, known = media.load(schema.Part("audio", data=raw))
    seconds = len(samples) / known["rate"]
    try:
        if known["rate"] != TUNE.rate:
            raise ValueError("not the playground's rate")
        codes = TUNE.encode({}, samples)
        drawn = charts.piano_roll(
            [int(c) for c in codes], f"tune of {len(codes)} notes"
        )
    except ValueError:
        drawn = charts.wave(samples, f"sound of {seconds:.1f} seconds")
    label = f"sound, {seconds:.1f} seconds"
    player = el("audio", controls=True, preload="metadata", src=uri, aria_label=label)
    return el("div", drawn, player, class_="audio")


def _video(raw):
    uri = _uri(raw, None)
    if not uri.startswith("data:image"):
        controls = {"controls": True, "loop": True, "muted": True}
        return el("video", **controls, src=uri, aria_label="clip", class_="picture")
    frames, _ = media.load(schema.Part("video", data=raw))
    film = el("img", src=uri, alt=f"clip of {len(frames)} frames", class_="picture")
    if len(frames) > _STILLS:
        return film
    stills = [
        el("img", src=_uri(_png(frame), "image"), alt=f"frame {n}")
        for n, frame in zip(itertools.count(1), frames)
    ]
    return el("div", film, el("div", stills, class_="stills"), class_="clip")


def _png(frame):
    return media.dump("image", np.ascontiguousarray(frame))


def _uri(raw, kind):
    """A file as a data: URI; its type is read from its bytes."""
    mime = mime_of(raw)
    if mime is None or (kind and not mime.startswith(kind)):
        raise media.MediaError(f"its first bytes are {raw[:8]!r}")
    return f"data:{mime};base64,{base64.b64encode(raw).decode()}"
