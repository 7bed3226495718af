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
_SHAPE = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.\-]+)")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}"
)
_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]|replica_groups=\{\{([\d,]+)\}")


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a computation, in its place in the schedule.

    Attributes:
      kind: the opcode. cycles: the compiler's estimate; 0 where it has none.
      num_bytes: of the result. rest: operands and attributes, as printed.
    """

    name: str
    kind: str
    cycles: int
    num_bytes: int
    rest: str


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that takes time in a step, and how often.

    Attributes:
      kind: "compute", "kernel", or a collective's name.
      name: the operation's; of a kernel, its own.
      num_bytes: of a collective's whole array.
      hidden_cycles: what the schedule does while a collective is on its way; 0 for one
        that everything waits for.
      ways: how many devices a collective joins.
    """

    kind: str
    name: str
    times: int
    cycles: int = 0
    num_bytes: int = 0
    hidden_cycles: int = 0
    ways: int = 1


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
            current.append(
                Op(name, kind, int(cycles[1]) if cycles else 0, size(shape), rest)
            )
    return computations, entry


def size(shape: str) -> int:
    """Bytes of a printed shape, of all parts of a tuple."""
    return sum(
        BYTES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d)
        for kind, dims in _SHAPE.findall(shape)
    )


def events(text: str) -> list[Event]:
    """Everything that takes time, loops multiplied out."""
    computations, entry = parse(text)
    return list(_events(computations, entry, 1))


def _events(
    computations: Mapping[str, list[Op]], name: str, times: int
) -> Iterator[Event]:
    ops = computations[name]
    for place, op in enumerate(ops):
        base = op.kind.removesuffix("-start")
        if op.kind == "while":
            body = re.search(r"body=%([\w.\-]+)", op.rest)[1]
            yield from _events(computations, body, times * _trips(computations, op))
        elif op.kind == "conditional":
            yield from _longest(computations, op, times)
        elif base in COLLECTIVES:
            yield Event(
                base,
                op.name,
                times,
                num_bytes=op.num_bytes,
                hidden_cycles=_until_done(ops, place) if base != op.kind else 0,
                ways=_ways(op.rest),
            )
        elif op.kind == "custom-call" and '"tpu_custom_call"' in op.rest:
            yield Event("kernel", op.name, times, num_bytes=op.num_bytes)
        elif op.kind in ("call", "async-start") and (found := _CALLED.search(op.rest)):
            yield from _events(computations, found[1], times)
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
    called = _CALLED.search(op.rest)
    inner = computations.get(called[1], []) if called else []
    woven = "async-collective" in op.name or "async_collective" in op.rest
    for part in inner:
        base = part.kind.removesuffix("-start")
        if base in COLLECTIVES and (not woven or "-start" in op.name):
            hidden = _until_done(ops, place) if woven else 0
            # Everybody's sum, of which each keeps its slice.
            sliced = any(other.kind == "dynamic-slice" for other in inner)
            if base == "all-reduce" and sliced:
                base = "reduce-scatter"
            yield Event(
                base, part.name, times, 0, part.num_bytes, hidden, _ways(part.rest)
            )
    if op.cycles:
        yield Event("compute", op.name, times, op.cycles)


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


def _trips(computations, op):
    """How often a loop runs: what its condition compares the counter with."""
    condition = re.search(r"condition=%([\w.\-]+)", op.rest)[1]
    ops = computations[condition]
    bounds = [
        int(number[1])
        for part in ops
        if part.kind == "constant" and (number := re.match(r"(\d+)\)", part.rest))
    ]
    return max(bounds, default=1)


def _longest(computations, op, times):
    """Of a conditional, the branch with the most cycles: what a full row takes."""
    found = re.search(r"branch_computations=\{(.*?)\}", op.rest)
    if found:
        names = [name.strip(" %") for name in found[1].split(",")]
    else:
        names = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", op.rest)
    branches = [list(_events(computations, name, times)) for name in names]
    return max(branches, key=lambda b: sum(e.times * e.cycles for e in b), default=[])


def _ways(rest):
    """Devices of a group."""
    if found := _MESH_GROUPS.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := _GROUPS.search(rest):
        return int(found[1]) if found[1] else len(found[2].split(","))
    return 1
