"""Pictures: coloured shapes on a grid of 4 x 4 cells, by count, colour, place, relation.

two red circles left and one blue square top          one red circle above one blue square
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alanything_jax.models.codecs.palette import COLOURS, SHAPES
from alanything_jax.playground.lexicon import NUMBERS, PICTURE, REGIONS, RELATIONS
from alanything_jax.playground.marks import Mark, mark, match, word

KIND, COLOUR_NAMES = "image", tuple(COLOURS)
GRID = PICTURE.rows


@dataclasses.dataclass(frozen=True)
class Item:
    """Some equal shapes; `region` is None in a relation. None = not said."""

    number: int | None
    colour: str | None
    shape: str | None
    region: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two items; with `relation`, the first stands so to the second."""

    items: tuple[Item, ...]
    relation: str | None = None


def sample(rng: np.random.Generator, parts: int | None = None) -> Scene:
    """A random scene of one item (half of them), two, or a relation (a tenth)."""
    kind = rng.random() if parts is None else (0.05 if parts == 1 else 0.7)
    first, second = _two(rng)
    if kind < 0.5:
        return Scene((first,))
    if kind < 0.9:
        return Scene((first, second))
    items = tuple(
        dataclasses.replace(i, number=1, region=None) for i in (first, second)
    )
    return Scene(items, str(rng.choice(RELATIONS)))


def _two(rng):
    looks = rng.choice(len(COLOUR_NAMES) * len(SHAPES), 2, replace=False)
    return [
        Item(
            int(rng.integers(1, 4)),
            COLOUR_NAMES[look // len(SHAPES)],
            SHAPES[look % len(SHAPES)],
            str(rng.choice(REGIONS)),
        )
        for look in looks
    ]


def key(scene: Scene) -> str:
    """What must be new in a test prompt: which looks stand together, and where."""
    looks = sorted(
        f"{i.colour} {i.shape} {i.region or scene.relation}" for i in scene.items
    )
    return "picture " + " ".join(looks)


def say(scene: Scene) -> str:
    """The scene in words."""
    said = [say_item(item) for item in scene.items]
    return f" {scene.relation or 'and'} ".join(said)


def say_item(item: Item) -> str:
    """One item in words."""
    return " ".join(filter(None, [word(item.number), look(item), item.region]))


def look(item: Item) -> str:
    """Colour and shape, plural where there are several."""
    return f"{item.colour} {item.shape}{'s' if item.number and item.number > 1 else ''}"


def read(text: str) -> Scene:
    """The scene that a text speaks of; what it does not say is None."""
    words = text.split()
    relation = next((w for w in words if w in RELATIONS), None)
    clauses, current = [], []
    for w in words:
        if w == "and" or w in RELATIONS:
            clauses.append(current)
            current = []
        else:
            current.append(w)
    items = tuple(
        Item(
            next((NUMBERS.index(w) + 1 for w in c if w in NUMBERS), None),
            next((w for w in c if w in COLOUR_NAMES), None),
            next(
                (w.removesuffix("s") for w in c if w.removesuffix("s") in SHAPES), None
            ),
            next((w for w in c if w in REGIONS), None),
        )
        for c in [*clauses, current]
        if c
    )
    return Scene(items, relation)


def realise(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Codes [16] of a picture that shows the scene."""
    codes = np.zeros((GRID, GRID), np.int32)
    if scene.relation:
        places = _related(scene.relation, rng)
    else:
        places = []
        for item in scene.items:
            free = [
                c for c in np.argwhere(_region(item.region)) if tuple(c) not in places
            ]
            places += [tuple(map(int, cell)) for cell in free[: item.number]]
    at = 0
    for item in scene.items:
        for place in places[at : at + item.number]:
            codes[place] = code(item)
        at += item.number
    return codes.reshape(-1)


def code(item: Item) -> int:
    """The palette's code of an item's look."""
    return 1 + COLOUR_NAMES.index(item.colour) * len(SHAPES) + SHAPES.index(item.shape)


def _region(name):
    """bool [4, 4]: the half of the grid with this name."""
    half = GRID // 2
    first = np.arange(GRID) < half
    rows, columns = {
        "left": (slice(None), first),
        "right": (slice(None), ~first),
        "top": (first, slice(None)),
        "bottom": (~first, slice(None)),
    }[name]
    out = np.zeros((GRID, GRID), bool)
    out[rows, columns] = True
    return out


def _related(relation, rng):
    low, high = sorted(rng.choice(GRID, 2, replace=False).tolist())
    same = int(rng.integers(GRID))
    return {
        "above": [(low, same), (high, same)],
        "below": [(high, same), (low, same)],
        "leftof": [(same, low), (same, high)],
        "rightof": [(same, high), (same, low)],
    }[relation]


def change(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing changed."""
    n = int(rng.integers(len(scene.items)))
    item = scene.items[n]
    if scene.relation:
        others = [r for r in RELATIONS if r != scene.relation]
        if rng.random() < 0.5:
            return dataclasses.replace(scene, relation=str(rng.choice(others)))
    fields = (
        ["colour", "shape"]
        if scene.relation
        else ["number", "colour", "shape", "region"]
    )
    field = str(rng.choice(fields))
    options = {
        "number": (1, 2, 3),
        "colour": COLOUR_NAMES,
        "shape": SHAPES,
        "region": REGIONS,
    }[field]
    rest = [o for o in options if o != getattr(item, field)]
    new = dataclasses.replace(item, **{field: rest[int(rng.integers(len(rest)))]})
    items = (*scene.items[:n], new, *scene.items[n + 1 :])
    if len({(i.colour, i.shape) for i in items}) < len(items):
        return change(scene, rng)
    return dataclasses.replace(scene, items=items)


def bias(scene: Scene) -> Scene:
    """A demonstrator's fixed habit: three becomes two, yellow green, bottom top."""
    habit = {3: 2, "yellow": "green", "bottom": "top"}
    items = tuple(
        Item(
            habit.get(i.number, i.number),
            habit.get(i.colour, i.colour),
            i.shape,
            habit.get(i.region, i.region),
        )
        for i in scene.items
    )
    if len({(i.colour, i.shape) for i in items}) < len(items):
        return scene
    return dataclasses.replace(scene, items=items)


def judge(scene: Scene, codes: np.ndarray) -> list[Mark]:
    """Marks of a picture, codes [16], against the scene it should show."""
    grid, marks = np.asarray(codes).reshape(GRID, GRID), []
    for item in scene.items:
        there = grid == code(item)
        count = int(there.sum())
        if not count:
            marks += [Mark("object", 0.0, f"missing {say_item(item)}")]
            marks += [Mark("number", 0.0), Mark("place", 0.0)]
            continue
        marks.append(Mark("object", 1.0))
        fault = (
            f"{word(count)} {item.colour} {item.shape}s , should be {word(item.number)}"
        )
        off = abs(count - item.number) / item.number
        marks.append(mark("number", 1 - off, fault))
        if item.region:
            share = float((there & _region(item.region)).sum() / count)
            marks.append(mark("place", share, f"{look(item)} not {item.region}"))
    known = [code(item) for item in scene.items]
    for other in sorted(set(grid[grid > 0].tolist()) - set(known)):
        name = f"{COLOUR_NAMES[(other - 1) // len(SHAPES)]} {SHAPES[(other - 1) % len(SHAPES)]}"
        marks.append(Mark("object", 0.0, f"extra {name}"))
    if scene.relation:
        marks.append(_relation_mark(scene, grid))
    return marks


def _relation_mark(scene, grid):
    first, second = (np.argwhere(grid == code(item)) for item in scene.items)
    holds = False
    if len(first) and len(second):
        dy, dx = second.mean(0) - first.mean(0)
        holds = {
            "above": dy > 0,
            "below": dy < 0,
            "leftof": dx > 0,
            "rightof": dx < 0,
        }[scene.relation]
    return mark("place", holds, f"{look(scene.items[0])} not {scene.relation}")


def compare(scene: Scene, said: Scene) -> list[Mark]:
    """Marks of a description against the scene it should describe."""

    def likeness(a, b):
        return (
            (a.colour == b.colour) + (a.shape == b.shape) + 0.5 * (a.number == b.number)
        )

    marks = []
    for item, other in zip(scene.items, match(scene.items, said.items, likeness)):
        if other is None:
            marks += [Mark("object", 0.0, f"missing {say_item(item)}")]
            marks += [Mark("number", 0.0), Mark("place", 0.0)]
            continue
        alike = (item.colour == other.colour) + (item.shape == other.shape)
        marks.append(mark("object", alike / 2, f"should be {look(item)}"))
        right = item.number == other.number
        marks.append(
            mark("number", right, f"should be {word(item.number)} {look(item)}")
        )
        if item.region:
            right = item.region == other.region
            marks.append(mark("place", right, f"{look(item)} should be {item.region}"))
    if len(said.items) > len(scene.items):
        marks.append(Mark("object", 0.0, "extra"))
    if scene.relation:
        order = [(i.colour, i.shape) for i in scene.items]
        swapped = [(i.colour, i.shape) for i in said.items][:2] == order[::-1]
        opposite = dict(zip(RELATIONS, ("below", "above", "rightof", "leftof")))
        holds = said.relation == (opposite if swapped else {}).get(
            scene.relation, scene.relation
        )
        marks.append(mark("place", holds, f"should be {scene.relation}"))
    return marks
