"""Pictures: coloured shapes on a grid of 4 x 4 cells, by count, colour, place, relation.

two red circles left and one blue square top          one red circle above one blue square
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alanything_jax.models.codecs.palette import COLOURS, SHAPES
from alanything_jax.playground.lexicon import NUMBERS, PICTURE, REGIONS, RELATIONS
from alanything_jax.playground.marks import Mark, absent, mark, match, word

KIND, COLOUR_NAMES = "image", tuple(COLOURS)
GRID = PICTURE.rows
# The cells of each edge as they fill up: the middle first, then one corner, so that three
# shapes at one edge never touch another edge's three, and a picture says where they are.
EDGES = {
    "left": ((1, 0), (2, 0), (3, 0), (0, 0)),
    "right": ((1, 3), (2, 3), (0, 3), (3, 3)),
    "top": ((0, 1), (0, 2), (0, 0), (0, 3)),
    "bottom": ((3, 1), (3, 2), (3, 3), (3, 0)),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """Some equal shapes; `region` is None in a relation. None = not said."""

    number: int | None
    colour: str | None
    shape: str | None
    region: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to three items; with `relation`, the first stands so to the second."""

    items: tuple[Item, ...]
    relation: str | None = None


def sample(rng: np.random.Generator, parts: int | None = None) -> Scene:
    """A random scene of one item (most of them), two, three, or a relation."""
    count = parts or int(rng.choice([1, 2, 3, 0], p=[0.6, 0.2, 0.1, 0.1]))
    items = _items(count or 2, rng)
    if count:
        return Scene(items)
    alone = tuple(dataclasses.replace(i, number=1, region=None) for i in items)
    return Scene(alone, str(rng.choice(RELATIONS)))


def _items(count, rng):
    """Items of different looks, in the palette's order, at different edges."""
    looks = rng.choice(len(COLOUR_NAMES) * len(SHAPES), count, replace=False)
    regions = rng.choice(REGIONS, count, replace=False)
    return tuple(
        Item(
            int(rng.integers(1, 4)),
            COLOUR_NAMES[look // len(SHAPES)],
            SHAPES[look % len(SHAPES)],
            str(region),
        )
        for look, region in zip(sorted(looks), regions)
    )


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


def see(codes: np.ndarray, most: int = 3) -> str:
    """What a picture shows, in `say`'s words as far as it has them; `most` looks."""
    grid = np.asarray(codes).reshape(GRID, GRID)
    looks = np.unique(grid[grid > 0])[:most]
    cells = [tuple(map(tuple, np.argwhere(grid == look).tolist())) for look in looks]
    relation = None
    if [len(c) for c in cells] == [1, 1] and not _first(cells[0][0], cells[1][0]):
        (a, b), (c, d) = cells[0][0], cells[1][0]
        relation = ("above" if a < c else "below") if b == d else None
        relation = ("leftof" if b < d else "rightof") if a == c else relation
    items = tuple(
        dataclasses.replace(
            _look(code), number=len(c), region=None if relation else _edge(c)
        )
        for code, c in zip(looks, cells)
    )
    return say(Scene(items, relation)) or "nothing"


def _look(code):
    """The inverse of `code`."""
    colour, shape = divmod(int(code) - 1, len(SHAPES))
    return Item(None, COLOUR_NAMES[colour], SHAPES[shape])


def _first(*cells):
    """Whether each cell is the first of an edge: then two shapes stand at edges."""
    return all(cell in [edge[0] for edge in EDGES.values()] for cell in cells)


def _edge(cells):
    """The edge with more than half of the cells, or None."""
    for name, edge in EDGES.items():
        if 2 * len(set(cells) & set(edge)) > len(cells):
            return name
    return None


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


def things(scene: Scene) -> list[dict[str, str | None]]:
    """Each item's attributes in words; a relation is the first item's."""
    out = [
        {"number": word(i.number), "colour": i.colour, "shape": i.shape}
        | ({} if scene.relation else {"region": i.region})
        for i in scene.items
    ]
    if scene.relation and out:
        out[0]["relation"] = scene.relation
    return out


def realise(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Codes [16] of a picture that shows the scene."""
    codes = np.zeros((GRID, GRID), np.int32)
    if scene.relation:
        places = _related(scene.relation, rng)
    else:
        places = [
            cell for item in scene.items for cell in EDGES[item.region][: item.number]
        ]
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
    """bool [4, 4]: the edge of the grid with this name."""
    out = np.zeros((GRID, GRID), bool)
    rows, columns = zip(*EDGES[name])
    out[rows, columns] = True
    return out


def _related(relation, rng):
    """Two cells that stand so, and not as two single shapes at edges would."""
    low, high = sorted(rng.choice(GRID, 2, replace=False).tolist())
    same = int(rng.integers(GRID))
    first, second = {
        "above": [(low, same), (high, same)],
        "below": [(high, same), (low, same)],
        "leftof": [(same, low), (same, high)],
        "rightof": [(same, high), (same, low)],
    }[relation]
    return _related(relation, rng) if _first(first, second) else [first, second]


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
    taken = [i.region for i in scene.items if i.region and field == "region"]
    rest = [o for o in options if o != getattr(item, field) and o not in taken]
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
    alike = len({(i.colour, i.shape) for i in items}) < len(items)
    crowded = not scene.relation and len({i.region for i in items}) < len(items)
    return scene if alike or crowded else dataclasses.replace(scene, items=items)


def judge(scene: Scene, codes: np.ndarray) -> list[Mark]:
    """Marks of a picture, codes [16], against the scene it should show."""
    grid, marks = np.asarray(codes).reshape(GRID, GRID), []
    for item in scene.items:
        there = grid == code(item)
        count = int(there.sum())
        if not count:
            marks += absent()
            continue
        off = abs(count - item.number) / item.number
        marks += [Mark("object", 1.0), mark("number", 1 - off)]
        if item.region:
            marks.append(mark("place", (there & _region(item.region)).sum() / count))
    known = [code(item) for item in scene.items]
    marks += [Mark("object", 0.0)] * len(set(grid[grid > 0].tolist()) - set(known))
    if scene.relation:
        marks.append(mark("place", _holds(scene, grid)))
    return marks


def _holds(scene, grid):
    """Whether the first item stands so to the second."""
    first, second = (np.argwhere(grid == code(item)) for item in scene.items)
    if not len(first) or not len(second):
        return False
    dy, dx = second.mean(0) - first.mean(0)
    return {"above": dy > 0, "below": dy < 0, "leftof": dx > 0, "rightof": dx < 0}[
        scene.relation
    ]


def compare(scene: Scene, said: Scene) -> list[Mark]:
    """Marks of a description against the scene it should describe."""

    def likeness(a, b):
        return (
            (a.colour == b.colour) + (a.shape == b.shape) + 0.5 * (a.number == b.number)
        )

    marks = []
    for item, other in zip(scene.items, match(scene.items, said.items, likeness)):
        if other is None:
            marks += absent()
            continue
        alike = (item.colour == other.colour) + (item.shape == other.shape)
        marks.append(mark("object", alike / 2))
        marks.append(mark("number", item.number == other.number))
        if item.region:
            marks.append(mark("place", item.region == other.region))
    if len(said.items) > len(scene.items):
        marks.append(Mark("object", 0.0))
    if scene.relation:
        order = [(i.colour, i.shape) for i in scene.items]
        swapped = [(i.colour, i.shape) for i in said.items][:2] == order[::-1]
        opposite = dict(zip(RELATIONS, ("below", "above", "rightof", "leftof")))
        holds = said.relation == (opposite if swapped else {}).get(
            scene.relation, scene.relation
        )
        marks.append(mark("place", holds))
    return marks
