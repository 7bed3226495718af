"""A page where a person votes blind on pairs of answers, and its votes as preference data.

The page is one file that needs no network: media are inside as data: URIs, votes stay in
the browser until they are downloaded. What models and prompts say is only ever set as
text, never as markup, and a content security policy admits no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alanything_jax import schema
from alanything_jax.data import media
from alanything_jax.data.files import digest, write_aside
from alanything_jax.pipelines.arena_battle import (
    TEMPLATES,
    Battle,
    fingerprint,
    same_answers,
)

FORMAT = "alanything votes 1"
VOTES = ("left", "right", "tie", "bad")
MAX_MEDIA_BYTES = 16 << 20
_DATA_URI = re.compile(r"data:(image|audio|video)/[\w.+-]+;base64,[A-Za-z0-9+/=]+")


def write_page(
    path: str | Path, battles: Sequence[Battle], *, seed: int = 0, title: str = "Arena"
) -> int:
    """Write the page; returns the number of pairs on it.

    The seed shuffles the pairs, and which answer of each stands left. Pairs of identical
    answers are left out: there is nothing to choose.
    """
    content = page_data(battles, seed)
    page = string.Template((TEMPLATES / "vote.html").read_text("utf-8"))
    script = re.search(r"<script>(.*?)</script>", page.template, re.S)[1]
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    about = {"title": html.escape(title), "script_hash": hashed}
    text = page.substitute(about, data=_embedded(content))
    write_aside(Path(path), text)
    return len(content["pairs"])


def page_data(battles: Sequence[Battle], seed: int = 0) -> dict[str, Any]:
    """What the page shows, as JSON: pairs in order, left side first, media by number."""
    chance = random.Random(seed)
    used = [battle for battle in battles if not same_answers(battle)]
    chance.shuffle(used)
    files: dict[str, int] = {}
    pairs = []
    for battle in used:
        sides = [
            {"model": name, "parts": _shown(response.messages, files)}
            for name, response in zip(battle.models, battle.responses, strict=True)
        ]
        if chance.random() < 0.5:
            sides.reverse()
        pair = {"id": battle.id, "check": fingerprint(battle), "sides": sides}
        pairs.append(pair | {"prompt": _shown(battle.prompt, files)})
    return {
        "format": FORMAT,
        "page": digest([seed, [pair["check"] for pair in pairs]]),
        "omitted": len(battles) - len(used),
        "media": list(files),
        "pairs": pairs,
    }


def read_votes(path: str | Path, battles: Sequence[Battle]) -> list[schema.Example]:
    """The downloaded votes as preference data: K = 2, in the battle's order of models.

    A tie chooses nothing; "both bad" chooses nothing and labels both undesirable. The
    vote itself, the models' names and the seconds it took are in `extra["arena"]`.

    Raises ValueError: not a file of votes, no rater named, a vote on something that is
    not among the battles, or on answers that have changed since.
    """
    text = Path(path).read_text("utf-8")
    try:
        ballot = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(ballot, dict) or ballot.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of votes: its format is not {FORMAT!r}.")
    rater, votes = ballot.get("rater"), ballot.get("votes")
    if not isinstance(rater, str) or not rater.strip() or not isinstance(votes, list):
        raise ValueError(f"{path} must name its rater and list the votes.")
    known = {battle.id: battle for battle in battles}
    examples, seen = [], set()
    for number, vote in enumerate(votes):
        try:
            examples.append(_example(vote, known, rater.strip()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, vote {number}: {error}") from error
        if vote["id"] in seen:
            raise ValueError(f"{path}, vote {number}: {vote['id']} was voted on twice.")
        seen.add(vote["id"])
    return examples


def _example(vote, known, rater):
    fields = {"id", "check", "left", "vote"}
    if not isinstance(vote, dict) or not fields <= vote.keys():
        raise ValueError(f"a vote has {', '.join(sorted(fields))}; this is {vote!r}.")
    battle = known.get(vote["id"])
    if battle is None:
        raise ValueError(f"{vote['id']} is no battle of this run. Give the run's own.")
    if vote["check"] != fingerprint(battle):
        raise ValueError(f"the answers of {vote['id']} are not those that were shown.")
    if vote["vote"] not in VOTES or vote["left"] not in battle.models:
        raise ValueError(
            f"{vote['vote']!r} with {vote['left']!r} on the left: a vote is one of "
            f"{', '.join(VOTES)}, the left model one of {', '.join(battle.models)}."
        )
    left = battle.models.index(vote["left"])
    chosen = {"left": left, "right": 1 - left}.get(vote["vote"])
    bad = (False, False) if vote["vote"] == "bad" else ()
    feedback = schema.Feedback(chosen, labels=bad, rater=rater)
    seen = {"battle": battle.id, "prompt": battle.prompt_id}
    seen |= {"models": list(battle.models), "left": vote["left"], "vote": vote["vote"]}
    extra = {"arena": seen | {"seconds": vote.get("seconds")}}
    name, both = f"{battle.id} {rater}", battle.responses
    return schema.Example(name, battle.prompt, both, feedback, extra)


def _embedded(value):
    """JSON that cannot end the script element it stands in, whatever it says."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _shown(messages, files):
    """A message's parts as the page takes them; of several, each after its role."""
    out = []
    for message in messages:
        if len(messages) > 1:
            out.append({"kind": "role", "text": message.role})
        out += [_part(part, files) for part in message.parts]
    blank = not any(x["kind"] != "role" and x.get("text", "?").strip() for x in out)
    return out + [{"kind": "note", "text": "(nothing)"}] if blank else out


def _part(part, files):
    if part.kind == "text":
        return {"kind": "text", "text": part.text or ""}
    try:
        uri = _data_uri(part)
    except (media.MediaError, OSError) as error:
        said = f"({part.kind} that cannot be shown: {error})"
        return {"kind": "note", "text": said}
    kind = uri[len("data:") :].split("/")[0]
    return {"kind": kind, "media": files.setdefault(uri, len(files))}


def _data_uri(part):
    """A part's file as a data: URI; its type is read from its bytes, never believed."""
    if part.data is None and (part.uri or "").startswith("data:"):
        if len(part.uri) > 2 * MAX_MEDIA_BYTES or not _DATA_URI.fullmatch(part.uri):
            raise media.MediaError("no base64 of a medium, or too large")
        return part.uri
    raw = media.as_file(part, MAX_MEDIA_BYTES)
    if (mime := media.mime_of(raw)) is None:
        raise media.MediaError(f"unknown format, starting with {raw[:8]!r}")
    return f"data:{mime};base64,{base64.b64encode(raw).decode()}"
