"""Bytes that a compiled step moves between a chip's memory and its cores.

Every operation reads its operands and writes its result, but what the compiler keeps in
the cores' own memory (space `S(1)` of a layout); of an array that is only cut, or written
in part, the part counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from alanything_jax.planning import hlo

_OPERAND = re.compile(r"%([\w.\-]+)")
# What moves nothing by itself, or whose parts are counted where they run.
_FREE = "parameter constant get-tuple-element tuple bitcast while conditional call iota"
_FREE += " after-all partition-id opt-barrier add-dependency"


def of_module(text: str, unknown: float = 1) -> float:
    """Bytes of one run of a module on one device; `unknown` as in `hlo.events`."""
    computations, entry = hlo.parse(text)
    return _of(computations, entry, unknown)


def _of(computations: Mapping[str, list[hlo.Op]], name: str, unknown: float) -> float:
    ops, total = computations[name], 0.0
    sizes = {op.name: in_memory(op.shape) for op in ops}
    for op in ops:
        if op.kind in _FREE.split() or op.kind.endswith(("-done", "-update")):
            if op.kind == "while":
                trips = hlo.trips(computations, op) or unknown
                body = re.search(r"body=%([\w.\-]+)", op.rest)[1]
                total += trips * _of(computations, body, unknown)
            elif op.kind == "conditional":
                names = hlo.branches(op)
                total += max(_of(computations, n, unknown) for n in names)
            elif op.kind == "call":
                total += _of(computations, hlo.called(op), unknown)
            continue
        if op.kind == "fusion":
            total += _of_fusion(computations[hlo.called(op)], op, sizes)
        else:
            total += _plain(op, sizes)
    return total


def in_memory(shape: str) -> int:
    """Bytes of a printed shape that lie in the chip's memory."""
    return sum(size for size, far in hlo.arrays(shape) if far)


def operands(op: hlo.Op) -> list[str]:
    """Names of an operation's operands, in order."""
    return _OPERAND.findall(op.rest.partition(")")[0])


def _plain(op, sizes):
    """Of an operation that is no fusion."""
    given = operands(op)
    if "AllocateBuffer" in op.rest:
        return 0
    if op.kind in ("copy-start", "slice-start", "dynamic-slice-start"):
        # Source and destination are in the result; less than all may be moved.
        arrays = hlo.arrays(op.shape)[:2]
        moved = min(size for size, _ in arrays)
        return moved * sum(far for _, far in arrays)
    if op.kind == "dynamic-slice":
        return 2 * sizes[op.name]
    if op.kind == "dynamic-update-slice":
        return 2 * sizes.get(given[1], 0)
    return sizes[op.name] + sum(sizes.get(name, 0) for name in given)


def _of_fusion(inner, op, sizes):
    """Operands as far as they are read, and the result as far as it is written."""
    if "async-collective" in op.name and not op.name.startswith(
        "async-collective-start"
    ):
        return 0.0  # Its start has what is moved.
    made = {part.name: part for part in inner}
    readers: dict[str, list[hlo.Op]] = {}
    for part in inner:
        for name in operands(part):
            readers.setdefault(name, []).append(part)
    root = inner[-1]
    results = operands(root) if root.kind == "tuple" else [root.name]
    total = 0
    for name, (size, far) in zip(results, hlo.arrays(op.shape), strict=False):
        total += min(size, _written(made[name], made)) if far else 0
    places = {int(p.rest.partition(")")[0]): p for p in inner if p.kind == "parameter"}
    for number, name in enumerate(operands(op)):
        size = sizes.get(name, 0)
        if size and number in places:
            size = min(size, _read(places[number], readers))
        total += size
    return total


def _written(part, made):
    """Bytes of what makes a result: of an update in place, the update's."""
    if part.kind == "bitcast" and operands(part)[0] in made:
        return _written(made[operands(part)[0]], made)
    if part.kind == "dynamic-update-slice":
        return sum(made[operands(part)[1]].sizes)
    return sum(part.sizes)


def _read(part, readers):
    """Bytes of a fusion's parameter that its readers take."""
    total = 0
    for reader in readers.get(part.name, []):
        if reader.kind == "bitcast":
            total += _read(reader, readers)
        elif reader.kind == "dynamic-slice":
            total += sum(reader.sizes)
        elif reader.kind != "dynamic-update-slice" or operands(reader)[0] != part.name:
            return sum(part.sizes)  # What is only written into, in place, is not read.
    return total
