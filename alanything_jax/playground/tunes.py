"""Tunes: one to three phrases, each by number, duration and direction of its notes.

three short notes up from do then two long notes same from so
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from alanything_jax.playground.lexicon import DURATIONS, NUMBERS, SLOPES, STARTS, TUNE
from alanything_jax.playground.marks import Mark, absent, mark, word

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
    """A random tune of one phrase (most of them), two or three.

    Short and long phrases take turns, so that the notes say where the next one begins.
    """
    count = parts or int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))
    first, most = int(rng.integers(2)), (4, 4, 2)[count - 1]
    return Tune(
        tuple(
            Phrase(
                int(rng.integers(2, most + 1)),
                DURATIONS[(first + n) % 2],
                str(rng.choice(SLOPES)),
                str(rng.choice(STARTS)),
            )
            for n in range(count)
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


def see(codes: np.ndarray, most: int = 3) -> str:
    """What a tune plays, in `say`'s words: a phrase for each run of one duration."""
    notes = [divmod(int(c), 2) for c in codes]
    runs = [list(run) for _, run in itertools.groupby(notes, key=lambda note: note[1])]
    phrases = []
    for run in runs[:most]:
        step = int(np.sign(run[1][0] - run[0][0])) if len(run) > 1 else 0
        slope = next(name for name, size in _STEP.items() if size == step)
        start = STARTS[int(np.clip(run[0][0] - BASE, 0, len(STARTS) - 1))]
        phrases.append(Phrase(len(run), DURATIONS[run[0][1]], slope, start))
    return say(Tune(tuple(phrases))) or "nothing"


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


def things(tune: Tune) -> list[dict[str, str | None]]:
    """Each phrase's attributes in words."""
    return [dataclasses.asdict(p) | {"number": word(p.number)} for p in tune.phrases]


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
    """The tune with one thing changed; durations change together, to go on taking turns."""
    phrases = list(tune.phrases)
    n = int(rng.integers(len(phrases)))
    options = {
        "number": (2, 3, 4) if len(phrases) < 3 else (2, 3),
        "duration": DURATIONS,
        "slope": SLOPES,
        "start": STARTS,
    }
    field = str(rng.choice(list(options)))
    if field == "duration":
        other = dict(zip(DURATIONS, DURATIONS[::-1]))
        changed = [dataclasses.replace(p, duration=other[p.duration]) for p in phrases]
        return Tune(tuple(changed))
    rest = [o for o in options[field] if o != getattr(phrases[n], field)]
    value = rest[int(rng.integers(len(rest)))]
    phrases[n] = dataclasses.replace(phrases[n], **{field: value})
    too_long = sum(p.number for p in phrases) > TUNE.length
    return change(tune, rng) if too_long else Tune(tuple(phrases))


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

    Where phrases meet is not written in the notes: the cut that scores best counts.
    """
    notes = [divmod(int(c), 2) for c in codes]
    best: list[Mark] = []
    for cuts in itertools.combinations_with_replacement(
        range(len(notes) + 1), len(tune.phrases) - 1
    ):
        ends = [0, *cuts, len(notes)]
        marks = [
            m
            for phrase, start, end in zip(tune.phrases, ends, ends[1:])
            for m in _phrase(phrase, notes[start:end])
        ]
        if not best or _total(marks) > _total(best):
            best = marks
    return best


def _total(marks):
    return sum(m.score for m in marks)


def _phrase(phrase, notes):
    if not notes:
        return absent()
    off = abs(notes[0][0] - BASE - STARTS.index(phrase.start))
    steps = np.diff([pitch for pitch, _ in notes])
    return [
        mark("object", 1.0 if off == 0 else 0.5 if off == 1 else 0.0),
        mark(
            "object", np.mean([DURATIONS[long] == phrase.duration for _, long in notes])
        ),
        mark("number", 1 - abs(len(notes) - phrase.number) / phrase.number),
        mark("place", np.mean(steps == _STEP[phrase.slope]) if len(steps) else 0.0),
    ]


def compare(tune: Tune, said: Tune) -> list[Mark]:
    """Marks of a description against the tune it should describe."""
    marks = []
    for n, phrase in enumerate(tune.phrases):
        if n >= len(said.phrases):
            marks += absent()
            continue
        other = said.phrases[n]
        for field, dimension in (
            ("start", "object"),
            ("duration", "object"),
            ("number", "number"),
            ("slope", "place"),
        ):
            marks.append(
                mark(dimension, getattr(phrase, field) == getattr(other, field))
            )
    if len(said.phrases) > len(tune.phrases):
        marks.append(Mark("object", 0.0))
    return marks
