"""Records as people see them: pictures, sound and film, what was said of them, tokens.

One file that needs no network and runs no script: media are inside as data: URIs, and
what records say is only ever text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from alanything_jax.data import media
from alanything_jax.data.files import write_aside
from alanything_jax.pipelines import inspect_tokens
from alanything_jax.pipelines.report import TEMPLATE
from alanything_jax.pipelines.report_charts import Markup, el, join
from alanything_jax.pipelines.report_gallery import show
from alanything_jax.schema import Critique, Example, Message, Part, Rating

TITLE = "alanything data inspect"
_SMALL, _MAX_FIELD = 128, 4000


@dataclasses.dataclass
class Room:
    """Bytes of media that may be put in: of one, and of all that are still to come."""

    medium: int = 8 << 20
    page: int = 64 << 20


def write_page(
    path: str | Path,
    source: str,
    records: Iterable[tuple[int, Example | Exception]],
    reads: inspect_tokens.Reader | None = None,
    room: Room | None = None,
) -> tuple[int, int]:
    """Write the page; returns how many records are on it, and how many cannot be read.

    Args:
      records: (row, record), or why the row cannot be read.
      reads: what counts tokens and shows how each group is packed.
      room: media over these limits are named, not shown.
    """
    room, sections, rows, bad = room or Room(), [], [], 0
    for row, record in records:
        bad, good = bad + isinstance(record, Exception), isinstance(record, Example)
        title = el("h2", f"row {row} ", el("small", record.id) if good else None)
        sections.append(
            el("section", title, _card(record, reads, room), id=f"row-{row}")
        )
        rows.append(row)
    said = "Give --model to see tokens, and how each group is packed."
    if reads:
        said = f"Tokens and packing are those of {reads.name}."
    unread = el("span", f"{bad} cannot be read", class_="badge down") if bad else None
    style = Markup(TEMPLATE.with_name("inspect.html").read_text("utf-8"))
    page = string.Template(TEMPLATE.read_text("utf-8")).substitute(
        title=TITLE,
        headline=join(f"{_count(len(rows), 'record')} of {source}"),
        summary=el("p", unread, f" {said}", class_="note"),
        nav=join([el("a", f"row {row}", href=f"#row-{row}") for row in rows]),
        sections=join(style, sections),
        maker=TITLE,
    )
    write_aside(Path(path), page.encode("ascii", "xmlcharrefreplace").decode())
    return len(rows), bad


def _count(number, what):
    return f"{number} {what}{'s' * (number != 1)}"


def _card(record, reads, room):
    if isinstance(record, Exception):
        what = el("h3", "This record cannot be read")
        return el(
            "div", what, el("p", str(record), class_="text"), class_="card broken"
        )
    count, feedback = len(record.responses), record.feedback
    facts = [_count(count, "response")]
    for name, value in (
        ("chosen: response", feedback.chosen),
        ("margin", feedback.margin),
        ("by", feedback.rater),
    ):
        facts += [f"{name} {value}"] if value is not None else []
    prompt = el("h4", "Prompt"), _messages(record.prompt, room)
    sides = [_side(record, n, room) for n in range(count)]
    rest = _feedback(record, lambda n: n not in range(count), room)
    parts = [
        el("div", [el("span", fact) for fact in facts], class_="told"),
        el("div", prompt, class_="prompt"),
        el("div", sides, class_="sides"),
        el("div", el("h4", "Of all responses"), rest) if rest else None,
        inspect_tokens.show(record, reads) if reads and sides else None,
        _extra(record.extra) if record.extra else None,
    ]
    return el("div", parts, class_="card record")


def _side(record, n, room):
    chosen, labels = record.feedback.chosen, record.feedback.labels
    badges = []
    if chosen is not None:
        badges.append(("chosen", "up") if n == chosen else ("rejected", "down"))
    if n < len(labels) and labels[n] is not None:
        badges.append(("desirable", "up") if labels[n] else ("undesirable", "down"))
    marks = [el("span", word, class_=f"badge {kind}") for word, kind in badges]
    return el(
        "div",
        el("h4", f"Response {n}", marks),
        _messages(record.responses[n].messages, room),
        _feedback(record, lambda response: response == n, room),
        class_="won" if n == chosen else None,
    )


def _feedback(record, of, room):
    """Ratings and critiques of the responses that `of` says yes to."""
    ratings = [r for r in record.feedback.ratings if of(r.response)]
    critiques = [c for c in record.feedback.critiques if of(c.response)]
    out = []
    if ratings:
        raters = sorted({r.rater for r in ratings if r.rater})
        rows = [_rating(r, len(raters) > 1) for r in ratings]
        table = el("table", el("tbody", rows), class_="ratings")
        out = [el("h5", "Ratings", f" by {', '.join(raters)}" if raters else ""), table]
    whole = [_critique(c, room) for c in critiques if c.dimension is None]
    single = [_critique(c, room) for c in critiques if c.dimension is not None]
    if whole:
        out += [el("h5", "Critique"), *whole]
    if single:
        said = f"{_count(len(single), 'critique')} by dimension"
        out.append(el("details", el("summary", said), single))
    return join(out)


def _rating(rating: Rating, several: bool) -> Markup:
    name, by = (
        el("th", rating.dimension, scope="row"),
        rating.rater if several else None,
    )
    score = el("td", f"{rating.score:g}", class_="score")
    return el(
        "tr",
        name,
        score,
        el("td", rating.rationale, el("small", f" {by}") if by else None),
    )


def _critique(critique: Critique, room: Room) -> Markup:
    head = " by ".join(x for x in (critique.dimension, critique.rater) if x)
    # Align Anything's "##Critique: ... ##Refinement: ..." as headings and their texts.
    first, *rest = re.split(r"##\s*(\w[\w ]*?)\s*(?::|\n)", critique.text)
    body = [el("p", first.strip(), class_="text")] if first.strip() else []
    for title, text in zip(rest[::2], rest[1::2], strict=True):
        body += [el("h5", title), el("p", text.strip(), class_="text")]
    if critique.refinement is not None:
        body += [el("h5", "Refined"), _messages(critique.refinement.messages, room)]
    return el("blockquote", el("small", head) if head else None, body)


def _messages(messages: Sequence[Message], room: Room) -> Markup:
    out = []
    for message in messages:
        if len(messages) > 1 or message.role not in ("user", "assistant"):
            out.append(el("p", message.role, class_="role"))
        for part in message.parts:
            if part.kind != "text":
                out.append(_medium(part, room))
            elif part.text:
                out.append(el("p", part.text, class_="text"))
    return join(out) or el("p", "(nothing)", class_="note")


def _medium(part, room):
    about = part.uri or part.meta.get("path")
    try:
        raw = media.as_file(part, room.medium)
        array, known = media.load(Part(part.kind, data=raw))
        if media.mime_of(raw) is None:  # no browser shows it
            raw = media.dump(part.kind, array, **known)
        if len(raw) > room.page:
            raise media.MediaError("the page holds as much as it may: show fewer rows.")
    except (media.MediaError, ImportError) as error:
        name = f"{part.kind} {about or ''}".strip()
        return el("p", f"{name} is not shown: {error}", class_="broken")
    room.page -= len(raw)
    caption = f"{_facts(part.kind, array, known)}, {len(raw) / 1024:,.1f} KiB"
    large = part.kind != "audio" and max(array.shape[-3:-1]) > _SMALL
    return el(
        "figure",
        show([Message("", (Part(part.kind, data=raw),))]),
        el("figcaption", f"{about}: {caption}" if about else caption),
        class_="large" if large else None,
    )


def _facts(kind, array, known):
    if kind == "audio":
        return f"{len(array) / known['rate']:.1f} s at {known['rate']} Hz"
    size = f"{array.shape[-2]} x {array.shape[-3]}"
    if kind == "image":
        return size
    return f"{_count(len(array), 'frame')} of {size}, {known['fps']:g} a second"


def _extra(extra):
    """Fields of the source that have no other place; long ones by their beginning."""
    out = []
    for name, value in extra.items():
        if not isinstance(value, str):
            short = {"ensure_ascii": False, "default": lambda x: f"{x!r:.200}"}
            value = json.dumps(value, indent=1, **short)
        more = f" ... ({len(value):,} characters)" if len(value) > _MAX_FIELD else ""
        out += [el("h5", name), el("pre", value[:_MAX_FIELD] + more)]
    return el("details", el("summary", _count(len(extra), "extra field")), out)
