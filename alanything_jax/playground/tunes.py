"""Tunes: one or two phrases, each by number, duration and direction of its notes.

three short notes up from do then two long notes same from so
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alanything_jax.playground.lexicon import DURATIONS, NUMBERS, SLOPES, STARTS
from alanything_jax.playground.marks import Mark, mark, word

KIND = "audio"
# The pitch of "do": room for three steps down.
BASE = 3
_STEP = {"up": 1, "down": -1, "same": 0}


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Two to four notes; None = not said."""

    number: int | None
    duration: str | None
    slope: str | None
    start: str | None


@dataclasses.dataclass(frozen=True)
class Tune:
    """Phrases, one after another."""

    phrases: tuple[Phrase, ...]


def sample(rng: np.random.Generator, parts: int | None = None) -> Tune:
    """A random tune of one phrase (half of them) or two."""
    count = parts or (1 if rng.random() < 0.5 else 2)
    return Tune(
        tuple(
            Phrase(
                int(rng.integers(2, 5)),
                str(rng.choice(DURATIONS)),
                str(rng.choice(SLOPES)),
                str(rng.choice(STARTS)),
            )
            for _ in range(count)
        )
    )


def key(tune: Tune) -> str:
    """What must be new in a test prompt: how the phrases begin and go."""
    return "tune " + " ".join(f"{p.start} {p.slope} {p.duration}" for p in tune.phrases)


def say(tune: Tune) -> str:
    """The tune in words."""
    return " then ".join(
        f"{word(p.number)} {p.duration} notes {p.slope} from {p.start}"
        for p in tune.phrases
    )


def read(text: str) -> Tune:
    """The tune that a text speaks of; what it does not say is None."""
    clauses = [c.split() for c in f" {text} ".split(" then ") if c.strip()]
    return Tune(
        tuple(
            Phrase(
                next((NUMBERS.index(w) + 1 for w in c if w in NUMBERS), None),
                next((w for w in c if w in DURATIONS), None),
                next((w for w in c if w in SLOPES), None),
                next((w for w in c if w in STARTS), None),
            )
            for c in clauses
        )
    )


def realise(tune: Tune, rng: np.random.Generator | None = None) -> np.ndarray:
    """Codes [n] of the tune: two times the pitch, plus one if long."""
    del rng
    codes = []
    for p in tune.phrases:
        first = BASE + STARTS.index(p.start)
        codes += [
            2 * (first + n * _STEP[p.slope]) + DURATIONS.index(p.duration)
            for n in range(p.number)
        ]
    return np.array(codes, np.int32)


def change(tune: Tune, rng: np.random.Generator) -> Tune:
    """The tune with one thing changed."""
    n = int(rng.integers(len(tune.phrases)))
    phrase = tune.phrases[n]
    field = str(rng.choice(["number", "duration", "slope", "start"]))
    options = {
        "number": (2, 3, 4),
        "duration": DURATIONS,
        "slope": SLOPES,
        "start": STARTS,
    }[field]
    rest = [o for o in options if o != getattr(phrase, field)]
    new = dataclasses.replace(phrase, **{field: rest[int(rng.integers(len(rest)))]})
    return Tune((*tune.phrases[:n], new, *tune.phrases[n + 1 :]))


def bias(tune: Tune) -> Tune:
    """A demonstrator's fixed habit: four notes become three, down same, ti la."""
    habit = {4: 3, "down": "same", "ti": "la"}
    return Tune(
        tuple(
            Phrase(
                habit.get(p.number, p.number),
                p.duration,
                habit.get(p.slope, p.slope),
                habit.get(p.start, p.start),
            )
            for p in tune.phrases
        )
    )


def judge(tune: Tune, codes: np.ndarray) -> list[Mark]:
    """Marks of a tune, codes [n], against what it should be.

    Where two phrases meet is not written in the notes: the cut that scores best counts.
    """
    notes = [divmod(int(c), 2) for c in codes]
    if len(tune.phrases) == 1:
        return _phrase("first", tune.phrases[0], notes)
    first, second = tune.phrases
    cuts = [
        _phrase("first", first, notes[:at]) + _phrase("second", second, notes[at:])
        for at in range(len(notes) + 1)
    ]
    return max(cuts, key=lambda marks: sum(m.score for m in marks))


def _phrase(name, phrase, notes):
    if not notes:
        return [
            Mark("object", 0.0, f"missing {name} phrase"),
            Mark("number", 0.0),
            Mark("place", 0.0),
        ]
    first = BASE + STARTS.index(phrase.start)
    off = notes[0][0] - first
    said = STARTS[int(np.clip(notes[0][0] - BASE, 0, len(STARTS) - 1))]
    start = mark(
        "object",
        1.0 if off == 0 else 0.5 if abs(off) == 1 else 0.0,
        f"{name} phrase starts {said} , should be {phrase.start}",
    )
    share = np.mean([DURATIONS[long] == phrase.duration for _, long in notes])
    length = mark("object", float(share), f"{name} phrase not {phrase.duration}")
    count = len(notes)
    number = mark(
        "number",
        1 - abs(count - phrase.number) / phrase.number,
        f"{name} phrase {word(count)} notes , should be {word(phrase.number)}",
    )
    steps = np.diff([pitch for pitch, _ in notes])
    right = float(np.mean(steps == _STEP[phrase.slope])) if len(steps) else 0.0
    return [
        start,
        length,
        number,
        mark("place", right, f"{name} phrase not {phrase.slope}"),
    ]


def compare(tune: Tune, said: Tune) -> list[Mark]:
    """Marks of a description against the tune it should describe."""
    marks = []
    for n, phrase in enumerate(tune.phrases):
        name = ("first", "second")[n]
        if n >= len(said.phrases):
            marks += [Mark("object", 0.0, f"missing {name} phrase")]
            marks += [Mark("number", 0.0), Mark("place", 0.0)]
            continue
        other = said.phrases[n]
        for field, dimension in (
            ("start", "object"),
            ("duration", "object"),
            ("number", "number"),
            ("slope", "place"),
        ):
            want = getattr(phrase, field)
            shown = word(want) if field == "number" else want
            right = want == getattr(other, field)
            marks.append(mark(dimension, right, f"{name} phrase should be {shown}"))
    if len(said.phrases) > len(tune.phrases):
        marks.append(Mark("object", 0.0, "extra phrase"))
    return marks
