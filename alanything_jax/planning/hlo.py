"""Reading what the TPU compiler made: its own cycles, loops, collectives, kernels.

A compiled module is printed in the order it will run in. Each operation carries the
compiler's estimate in cycles; a loop's body is printed once and runs as often as its
condition says.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^  (?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.\-]+)")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[(.*?)\](?:T\((.*?)\))?\))? "
    r"\{(.*?)\}"
)
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[(.*?)\](?:T\((.*?)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a computation, in its place in the schedule.

    Attributes:
      kind: the opcode. cycles: the compiler's estimate; 0 where it has none.
      shape: of the result, rest: operands and attributes, both as printed.
    """

    name: str
    kind: str
    cycles: int
    shape: str
    rest: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each array of the result."""
        return sizes(self.shape)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that takes time in a step, and how often.

    Attributes:
      kind: "compute", "kernel", or a collective's name.
      name: the operation's; of a kernel, its own.
      num_bytes: of a collective's whole array, all devices' parts together.
      hidden_cycles: what the schedule does while a collective is on its way; 0 for one
        that everything waits for.
      group: places in the mesh of the devices that one of its groups joins.
      dims: of a kernel's first result.
    """

    kind: str
    name: str
    times: int
    cycles: int = 0
    num_bytes: int = 0
    hidden_cycles: int = 0
    group: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()


def parse(text: str) -> tuple[dict[str, list[Op]], str]:
    """Computations by name, and the entry's name, of a module's text."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            name, shape, kind, rest = found.groups()
            cycles = _CYCLES.search(rest)
            current.append(Op(name, kind, int(cycles[1]) if cycles else 0, shape, rest))
    return computations, entry


def sizes(shape: str) -> tuple[int, ...]:
    """Bytes of a printed shape, of each part of a tuple."""
    return tuple(size for size, _ in arrays(shape))


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Of each array of a printed shape its bytes, and whether it lies in the chip's
    memory, and not in the cores' own (space `S(1)` of its layout)."""
    return [
        (
            BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d),
            "S(" not in layout,
        )
        for kind, dims, layout in _SHAPE.findall(shape)
    ]


def events(text: str, unknown: float = 1) -> list[Event]:
    """Everything that takes time, loops multiplied out.

    `unknown`: how often a loop runs whose bound is known when it runs.
    """
    computations, entry = parse(text)
    return list(_events(computations, entry, 1, unknown))


def _events(
    computations: Mapping[str, list[Op]], name: str, times: float, unknown: float
) -> Iterator[Event]:
    ops = computations[name]
    for place, op in enumerate(ops):
        base = op.kind.removesuffix("-start")
        if op.kind == "while":
            body = re.search(r"body=%([\w.\-]+)", op.rest)[1]
            often = times * (trips(computations, op) or unknown)
            yield from _events(computations, body, often, unknown)
        elif op.kind == "conditional":
            yield from _longest(computations, op, times, unknown)
        elif base in COLLECTIVES:
            hidden = _until_done(ops, place) if base != op.kind else 0
            yield _collective(op, times, hidden)
        elif op.kind == "custom-call" and '"tpu_custom_call"' in op.rest:
            yield Event("kernel", op.name, times, dims=_dims(op.shape))
        elif op.kind in ("call", "async-start") and (found := called(op)):
            yield from _events(computations, found, times, unknown)
        elif op.kind == "fusion":
            yield from _fusion(computations, ops, place, times)
        elif op.cycles:
            yield Event("compute", op.name, times, op.cycles)


def _fusion(computations, ops, place, times):
    """A fusion's own cycles, and the collective that starts inside it.

    A collective that the compiler weaves into compute is three fusions: its start, the
    work that hides it, its done. The printed collective is in each; the start counts.
    """
    op = ops[place]
    inner = computations.get(called(op), [])
    woven = "async-collective" in op.name or "async_collective" in op.rest
    for part in inner:
        base = part.kind.removesuffix("-start")
        if base in COLLECTIVES and (not woven or "-start" in op.name):
            hidden = _until_done(ops, place) if woven else 0
            found = _collective(part, times, hidden)
            # Everybody's sum, of which each keeps its slice.
            if base == "all-reduce" and any(p.kind == "dynamic-slice" for p in inner):
                found = dataclasses.replace(found, kind="reduce-scatter")
            yield found
    if op.cycles:
        yield Event("compute", op.name, times, op.cycles)


def _collective(op, times, hidden):
    """A collective as an event, with the bytes of the whole array."""
    kind, group = op.kind.removesuffix("-start"), _group(op.rest)
    num_bytes = sum(op.sizes)
    if op.kind.endswith("-start") and len(op.sizes) > 1 and kind != "all-reduce":
        # Operand and result, then words of its own.
        num_bytes = op.sizes[0 if kind == "reduce-scatter" else 1]
    elif kind in ("reduce-scatter", "all-to-all"):
        num_bytes *= max(1, len(group))
    return Event(kind, op.name, times, 0, num_bytes, hidden, group)


def _until_done(ops, place):
    """Cycles that run between a collective's start and its done."""
    name, total = ops[place].name, 0
    for op in ops[place + 1 :]:
        names_it = op.kind.endswith("-done") and re.search(
            rf"%{re.escape(name)}[,) ]", op.rest
        )
        if names_it or op.name == name.replace("-start", "-done"):
            break
        total += op.cycles
    return total


def trips(computations: Mapping[str, list[Op]], op: Op) -> int:
    """How often a loop runs: what its condition compares the counter with; 0 if that is
    no constant."""
    condition = re.search(r"condition=%([\w.\-]+)", op.rest)[1]
    ops = computations[condition]
    bounds = [
        int(number[1])
        for part in ops
        if part.kind == "constant" and (number := re.match(r"(\d+)\)", part.rest))
    ]
    return max(bounds, default=0)


def _longest(computations, op, times, unknown):
    """Of a conditional, the branch with the most cycles: what a full row takes."""
    found = [list(_events(computations, n, times, unknown)) for n in branches(op)]
    return max(found, key=lambda b: sum(e.times * e.cycles for e in b), default=[])


def branches(op: Op) -> list[str]:
    """Names of the computations that a conditional chooses from."""
    found = re.search(r"branch_computations=\{(.*?)\}", op.rest)
    if found:
        return [name.strip(" %") for name in found[1].split(",")]
    return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", op.rest)


def called(op: Op) -> str:
    """Name of the computation that a fusion or call runs; "" where it runs none."""
    found = _CALLED.search(op.rest)
    return found[1] if found else ""


def _dims(shape):
    """Of the first array of a printed shape."""
    found = _SHAPE.search(shape)
    return tuple(int(size) for size in found[2].split(",")) if found else ()


def _group(rest):
    """Places in the mesh of the devices of the first group; () where none is printed."""
    if found := _MESH_GROUPS.search(rest):
        named, dims, order, axes = found.groups()
        names, counts = zip(*re.findall(r"'(\w+)'=(\d+)", named), strict=True)
        ids = _laid(dims or ",".join(counts), order).reshape([int(n) for n in counts])
        kept = [names.index(axis) for axis in re.findall(r"'(\w+)'", axes)]
        first = tuple(slice(None) if n in kept else 0 for n in range(len(names)))
        return tuple(ids[first].ravel().tolist())
    if found := _IOTA_GROUPS.search(rest):
        return tuple(_laid(*found.group(2, 3)).ravel()[: int(found[1])].tolist())
    found = _LISTED.search(rest)
    return tuple(map(int, found[1].split(","))) if found else ()


def _laid(dims, order):
    """0, 1, 2 ... in an array of these dims, transposed as printed."""
    sizes = [int(size) for size in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids
