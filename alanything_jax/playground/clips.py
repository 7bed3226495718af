"""Clips: shapes that cross a grid of 3 x 3 cells in three frames, and may change colour.

red circle moves right outer turning blue and green square moves up middle
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alanything_jax.models.codecs.palette import COLOURS, SHAPES
from alanything_jax.playground.lexicon import CLIP, DIRECTIONS, LANES
from alanything_jax.playground.marks import Mark, absent, mark, match

KIND, COLOUR_NAMES = "video", tuple(COLOURS)
FRAMES, GRID = CLIP.frames, CLIP.rows


@dataclasses.dataclass(frozen=True)
class Mover:
    """One shape on its way; `turning` is its colour in the last frame, or None."""

    colour: str | None
    shape: str | None
    direction: str | None
    lane: str | None
    turning: str | None = None


@dataclasses.dataclass(frozen=True)
class Clip:
    """One or two movers, which never meet in a cell."""

    movers: tuple[Mover, ...]


def sample(rng: np.random.Generator, parts: int | None = None) -> Clip:
    """A random clip of one mover (most of them) or two; the first may change colour."""
    count = parts or (1 if rng.random() < 0.65 else 2)
    while True:
        looks = sorted(rng.choice(len(COLOUR_NAMES) * len(SHAPES), 2, replace=False))
        movers = [
            Mover(
                COLOUR_NAMES[look // len(SHAPES)],
                SHAPES[look % len(SHAPES)],
                str(rng.choice(DIRECTIONS)),
                str(rng.choice(LANES)),
            )
            for look in looks
        ]
        first = int(rng.integers(2)) if count == 1 else 0
        movers = movers[first : first + count]
        if rng.random() < 0.5:
            rest = [c for c in COLOUR_NAMES if c != movers[0].colour]
            movers[0] = dataclasses.replace(movers[0], turning=str(rng.choice(rest)))
        clip = Clip(tuple(movers))
        if _sound(clip):
            return clip


def _sound(clip):
    """Movers never share a cell, and never look alike."""
    if len(clip.movers) == 1:
        return True
    a, b = clip.movers
    looks = {(m.shape, c) for m in (a, b) for c in {m.colour, m.turning or m.colour}}
    wanted = sum(1 + (m.turning is not None) for m in (a, b))
    apart = all(_cell(a, f) != _cell(b, f) for f in range(FRAMES))
    return apart and len(looks) == wanted


def _cell(mover, frame):
    """(row, column) in a frame."""
    lane, step = LANES.index(mover.lane), frame
    back = GRID - 1 - frame
    return {
        "right": (lane, step),
        "left": (lane, back),
        "down": (step, lane),
        "up": (back, lane),
    }[mover.direction]


def key(clip: Clip) -> str:
    """What must be new in a test prompt: which looks move together, and how."""
    return "clip " + " ".join(
        sorted(f"{m.colour} {m.shape} {m.direction}" for m in clip.movers)
    )


def say(clip: Clip) -> str:
    """The clip in words."""
    return " and ".join(say_mover(mover) for mover in clip.movers)


def say_mover(m: Mover) -> str:
    """One mover in words."""
    turning = f" turning {m.turning}" if m.turning else ""
    return f"{m.colour} {m.shape} moves {m.direction} {m.lane}{turning}"


def see(codes: np.ndarray, most: int = 3) -> str:
    """What a clip shows, in `say`'s words: where each shape of the first frame goes."""
    frames = np.asarray(codes).reshape(FRAMES, GRID, GRID)
    looks = np.unique(frames[0][frames[0] > 0])[:most]
    movers = (_follow(int(look), frames) for look in looks)
    return say(Clip(tuple(movers))) or "nothing"


def _follow(look, frames):
    """The mover of this code in the first frame: the way it is seen on most often."""
    colour, shape = divmod(look - 1, len(SHAPES))
    start = tuple(np.argwhere(frames[0] == look)[0].tolist())

    def seen(mover):
        codes = [int(frames[(f, *_cell(mover, f))]) for f in range(1, FRAMES)]
        return sum(c > 0 and (c - 1) % len(SHAPES) == shape for c in codes)

    ways = [
        Mover(COLOUR_NAMES[colour], SHAPES[shape], direction, lane)
        for direction in DIRECTIONS
        for lane in LANES
    ]
    best = max((m for m in ways if _cell(m, 0) == start), key=seen, default=ways[0])
    last = int(frames[(-1, *_cell(best, FRAMES - 1))])
    turned = last > 0 and last != look and (last - 1) % len(SHAPES) == shape
    turning = COLOUR_NAMES[(last - 1) // len(SHAPES)] if turned else None
    return dataclasses.replace(best, turning=turning)


def read(text: str) -> Clip:
    """The clip that a text speaks of; what it does not say is None."""
    movers = []
    for clause in f" {text} ".split(" and "):
        words = clause.split()
        if not words:
            continue
        before, _, after = clause.partition(" turning ")
        said = before.split()
        movers.append(
            Mover(
                next((w for w in said if w in COLOUR_NAMES), None),
                next((w for w in said if w in SHAPES), None),
                next((w for w in said if w in DIRECTIONS), None),
                next((w for w in said if w in LANES), None),
                next((w for w in after.split() if w in COLOUR_NAMES), None),
            )
        )
    return Clip(tuple(movers))


def things(clip: Clip) -> list[dict[str, str | None]]:
    """Each mover's attributes in words; one that keeps its colour turns "same"."""
    return [
        dataclasses.asdict(m) | {"turning": m.turning or "same"} for m in clip.movers
    ]


def realise(clip: Clip, rng: np.random.Generator | None = None) -> np.ndarray:
    """Codes [27], frame by frame."""
    del rng
    codes = np.zeros((FRAMES, GRID, GRID), np.int32)
    for mover in clip.movers:
        for frame in range(FRAMES):
            codes[(frame, *_cell(mover, frame))] = code(mover, frame)
    return codes.reshape(-1)


def code(mover: Mover, frame: int) -> int:
    """The palette's code of a mover in a frame."""
    turned = mover.turning and frame == FRAMES - 1
    colour = mover.turning if turned else mover.colour
    return 1 + COLOUR_NAMES.index(colour) * len(SHAPES) + SHAPES.index(mover.shape)


def change(clip: Clip, rng: np.random.Generator) -> Clip:
    """The clip with one thing changed."""
    while True:
        n = int(rng.integers(len(clip.movers)))
        mover = clip.movers[n]
        fields = ["colour", "shape", "direction", "lane"] + ["turning"] * bool(
            mover.turning
        )
        field = str(rng.choice(fields))
        options = {
            "colour": COLOUR_NAMES,
            "shape": SHAPES,
            "direction": DIRECTIONS,
            "lane": LANES,
            "turning": (*COLOUR_NAMES, None),
        }[field]
        rest = [o for o in options if o != getattr(mover, field)]
        new = dataclasses.replace(mover, **{field: rest[int(rng.integers(len(rest)))]})
        out = Clip((*clip.movers[:n], new, *clip.movers[n + 1 :]))
        if new.turning != new.colour and _sound(out):
            return out


def bias(clip: Clip) -> Clip:
    """A demonstrator's fixed habit: inner becomes middle, up down, and no colour turns."""
    habit = {"inner": "middle", "up": "down"}
    out = Clip(
        tuple(
            Mover(
                m.colour,
                m.shape,
                habit.get(m.direction, m.direction),
                habit.get(m.lane, m.lane),
            )
            for m in clip.movers
        )
    )
    return out if _sound(out) else clip


def judge(clip: Clip, codes: np.ndarray) -> list[Mark]:
    """Marks of a clip, codes [27], against what it should show."""
    frames = np.asarray(codes).reshape(FRAMES, GRID, GRID)
    marks, known = [], set()
    for mover in clip.movers:
        known |= {code(mover, f) for f in range(FRAMES)}
        marks += _mover(mover, frames)
    return marks + [Mark("object", 0.0)] * len(set(frames[frames > 0].tolist()) - known)


def _mover(mover, frames):
    where = [np.argwhere(frames[f] == code(mover, f)) for f in range(FRAMES)]
    if not any(map(len, where)):
        return absent()
    seen = [
        (f, tuple(int(x) for x in w[0])) for f, w in enumerate(where) if len(w) == 1
    ]
    lane_axis = 0 if mover.direction in ("left", "right") else 1
    lane = [cell[lane_axis] == LANES.index(mover.lane) for _, cell in seen]
    along = [cell[1 - lane_axis] == _cell(mover, f)[1 - lane_axis] for f, cell in seen]
    marks = [
        Mark("object", 1.0),
        mark("number", len(seen) / FRAMES),
        mark("place", np.mean(lane or [0])),
        mark("place", np.mean(along or [0])),
    ]
    if mover.turning:
        marks.append(mark("object", len(where[-1]) > 0))
    return marks


def compare(clip: Clip, said: Clip) -> list[Mark]:
    """Marks of a description against the clip it should describe."""

    def likeness(a, b):
        return (a.colour == b.colour) + (a.shape == b.shape) + 0.1 * (a.lane == b.lane)

    marks = []
    for mover, other in zip(clip.movers, match(clip.movers, said.movers, likeness)):
        if other is None:
            marks += absent()
            continue
        alike = (mover.colour == other.colour) + (mover.shape == other.shape)
        marks += [
            Mark("number", 1.0),
            mark("object", alike / 2),
            mark("object", mover.turning == other.turning),
            mark("place", mover.direction == other.direction),
            mark("place", mover.lane == other.lane),
        ]
    if len(said.movers) > len(clip.movers):
        marks.append(Mark("number", 0.0))
    return marks
