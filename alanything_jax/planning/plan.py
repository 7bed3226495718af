"""A recipe's train step, compiled for a TPU topology: does it fit, how fast may it be.

Memory is the compiler's own. Time is an estimate, put together from

    compute       the compiler's cycles of each operation, times the loops around it, in
                  the trained roles' passes and in those of roles that do not train
    kernels       our attention kernels at half of peak, over the blocks they visit
    optimizer     the compiler's cycles of the update
    collectives   what the schedule leaves in the open of each collective, at the bandwidth
                  of its links

on rows that each hold one group: a prompt of half a row and responses that share the rest.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alanything_jax.experiment import Experiment
from alanything_jax.planning import abstract, flops, hlo, topology, traffic

Say = Callable[[str], None]
GIB = 2**30
# What a kernel of our own is charged, until someone measures it on a chip.
KERNEL_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `alanything plan` says of one recipe on one topology.

    Attributes:
      hbm: GiB per chip by kind, at the fullest moment.
      lookup_flops_per_chip: of the model's, those that 6 N counts for an input embedding,
        where nothing is multiplied.
      hbm_bytes_per_chip: that a step moves to and from memory; hbm_bytes_per_s: at most.
      kernels_not_charged: custom kernels of unknown work, whose time is missing.
      seconds: of a step, by component; `collectives` only what nothing hides.
      collectives: each kind and mesh axes: GiB a step, all devices' parts together,
        seconds in all, seconds in the open.
      advice: what to change where it does not fit.
    """

    recipe: str
    topology: str
    slices: int
    chips: int
    fits: bool
    hbm: dict[str, float]
    hbm_limit_gib: float
    compile_s: float
    flops_per_chip: float = 0.0
    model_flops_per_chip: float = 0.0
    lookup_flops_per_chip: float = 0.0
    hbm_bytes_per_chip: float = 0.0
    hbm_bytes_per_s: float = 0.0
    kernels_not_charged: tuple[str, ...] = ()
    tokens: int = 0
    peak_flops: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    advice: tuple[str, ...] = ()

    @property
    def compute_seconds(self) -> float:
        """Of a step, were every collective hidden."""
        return sum(s for kind, s in self.seconds.items() if kind != "collectives")

    def to_json(self) -> dict[str, Any]:
        """The figures under the names that DESIGN 9 promises."""
        total, compute = sum(self.seconds.values()), self.compute_seconds

        def mfu(seconds):
            return (
                self.model_flops_per_chip / (seconds * self.peak_flops)
                if seconds
                else None
            )

        return {
            "recipe": self.recipe,
            "topology": self.topology,
            "slices": self.slices,
            "chips": self.chips,
            "fits": self.fits,
            "hbm_gib_per_chip": sum(self.hbm.values()),
            "hbm_limit_gib": self.hbm_limit_gib,
            "hbm_gib_by_kind": self.hbm,
            "flops_per_chip": self.flops_per_chip,
            "model_flops_per_chip": self.model_flops_per_chip,
            "estimated_step_s": total or None,
            "lookup_flops_per_chip": self.lookup_flops_per_chip,
            "hbm_bytes_per_chip": self.hbm_bytes_per_chip,
            "hbm_bytes_per_s": self.hbm_bytes_per_s,
            "kernels_not_charged": list(self.kernels_not_charged),
            "estimated_mfu": mfu(total),
            "compute_bound_step_s": compute or None,
            "compute_bound_mfu": mfu(compute),
            "seconds_by_component": self.seconds,
            "tokens_per_s_per_chip": self.tokens / total / self.chips
            if total
            else None,
            "tokens_per_step": self.tokens,
            "collectives": self.collectives,
            "compile_s": self.compile_s,
            "advice": list(self.advice),
        }


def plan(experiment: Experiment, name: str, slices: int = 1, say: Say = print) -> Plan:
    """Compile a recipe's step for a topology and say what it takes.

    Args:
      name: GENERATION:SHAPE, such as v5p:4x4x4. slices: of that shape, joined by DCN.

    Raises ValueError: no such topology, or a recipe that its mesh cannot hold.
    """
    chip, devices = topology.devices(name, slices)
    parts = abstract.abstract(experiment, devices)
    live = {kind: per_device(tree) for kind, tree in parts.live.items()}
    chips = len(devices) // chip.cores
    basics = dict(
        recipe=experiment.name,
        topology=name,
        slices=slices,
        chips=chips,
        hbm_limit_gib=chip.cores * chip.hbm_gib,
        peak_flops=chip.cores * chip.peak_flops,
    )
    start = time.perf_counter()
    try:
        say(f"compiling {experiment.name} for {slices} x {name} ({chips} chips)")
        modules = {
            name: _compile(part, parts.mesh, chip.flags)
            for name in ("accumulate", "apply", "frozen")
            if (part := getattr(parts, name)) is not None
        }
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error), sum(live.values()))
        if needed is None:
            raise
        return Plan(
            **basics,
            fits=False,
            hbm={"by the compiler's message": chip.cores * needed},
            compile_s=time.perf_counter() - start,
            advice=advice(experiment, live, chip),
        )
    took = time.perf_counter() - start
    # Printed and read once: a module has megabytes of text.
    texts = {part: module.as_text() for part, module in modules.items()}
    hbm = _memory(parts, live, modules, texts["accumulate"])
    fits = sum(hbm.values()) <= chip.hbm_gib
    tokens = parts.microbatches * math.prod(parts.accumulate[1][2].tokens.shape)
    seconds, collectives, strangers = _time(parts, chip, texts, name)
    moved = chip.cores * _bytes(parts, texts)
    program, model, lookup = flops.of_step(parts, tokens)
    return Plan(
        **basics,
        fits=fits,
        hbm={kind: chip.cores * gib for kind, gib in hbm.items()},
        compile_s=took,
        flops_per_chip=program / chips,
        model_flops_per_chip=model / chips,
        lookup_flops_per_chip=lookup / chips,
        hbm_bytes_per_chip=moved,
        hbm_bytes_per_s=chip.cores * chip.hbm_bytes_per_s,
        kernels_not_charged=strangers,
        tokens=tokens,
        seconds=seconds,
        collectives=collectives,
        advice=() if fits else advice(experiment, live, chip),
    )


def _needed(message, live):
    """GiB that a compiler which ran out of memory names; None = its trouble is another.

    Of what it counts, nothing is the optimizer's: that is not an argument of gradients.
    """
    pattern = r"Used ([\d.]+)([GM]) of [\d.]+[GM] hbm|"
    pattern += r"HLO temporaries \(([\d.]+)([GM])\) exceeds available HBM"
    if not (found := re.search(pattern, message)):
        return None
    whole, temporaries = found[1], found[3]
    unit = {"G": 1, "M": 1024}[found[2] or found[4]]
    return float(whole or temporaries) / unit + (0.0 if whole else live)


def per_device(tree: Any) -> float:
    """GiB that one device holds of a tree of abstract arrays."""
    return (
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
        / GIB
    )


def _compile(part, mesh, flags):
    function, arguments = part
    options = dict(flag.split("=", 1) for flag in flags)
    with jax.set_mesh(mesh), warnings.catch_warnings():
        # What was compiled for chips elsewhere cannot be read back from the cache.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        return function.lower(*arguments).compile(compiler_options=options)


def _memory(parts, live, modules, text):
    """GiB by kind at the fullest moment: while gradients are made, mostly."""
    temp = {
        name: module.memory_analysis().temp_size_in_bytes / GIB
        for name, module in modules.items()
    }
    # All microbatches of a step lie there, and for a moment stacked, too.
    batch = parts.microbatches * per_device(parts.accumulate[1][2:4])
    held = activations(text, parts) / GIB
    held = min(held, temp["accumulate"])
    rest = temp["accumulate"] - held
    moments = [{**live, "batch": batch, "activations": held, "temporaries": rest}]
    moments.append({**live, "temporaries": temp["apply"]})
    before = {kind: gib for kind, gib in live.items() if kind != "gradients"}
    moments.append({**before, "batch": batch, "temporaries": batch})
    if "frozen" in temp:
        moments.append({**before, "batch": batch, "temporaries": temp["frozen"]})
    return max(moments, key=lambda kinds: sum(kinds.values()))


def activations(text: str, parts: Any) -> int:
    """Bytes that the forward pass keeps for the backward one: what its loop over the
    layers stacks up, less the copies of the layers' own weights.
    """
    layers = parts.program.config.num_layers
    weights = {
        tuple(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves((parts.live["parameters"], parts.live["frozen"]))
    }
    most = 0
    for shape in re.findall(r"^  (?:ROOT )?%[\w.\-]+ = (\(.*?\)) while\(", text, re.M):
        stacked = [
            (kind, tuple(map(int, dims.split(","))))
            for kind, dims in re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", shape)
        ]
        most = max(
            most,
            sum(
                hlo.BYTES.get(kind, 4) * math.prod(dims)
                for kind, dims in stacked
                if dims[0] == layers and dims not in weights and len(dims) > 2
            ),
        )
    return most


def _time(parts, chip, texts, name):
    """Seconds of a step by component, its collectives, and kernels of unknown work."""
    visited = flops.mean_visited(*_example(parts))
    events = {part: hlo.events(text, visited) for part, text in texts.items()}
    update, times = events.pop("apply"), parts.microbatches
    kernels, strangers = 0.0, set()
    for part, found in events.items():
        for event in found:
            if event.kind == "kernel":
                work = _kernel_flops(parts, event, part)
                kernels += event.times * work
                strangers |= set() if work else {event.name}
    passes = [event for found in events.values() for event in found]
    seconds = {
        "compute": times * _cycles(passes) / chip.clock_hz,
        "kernels": times * kernels / (KERNEL_SHARE * chip.peak_flops),
        "optimizer": _cycles(update) / chip.clock_hz,
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    devices = parts.mesh.devices.ravel()
    for event, runs in [(e, times) for e in passes] + [(e, 1) for e in update]:
        if event.kind not in hlo.COLLECTIVES:
            continue
        group = [devices[place] for place in event.group]
        each = topology.collective_seconds(
            event.kind, event.num_bytes, group, chip, name
        )
        axes = _axes(parts.mesh, event.group)
        row = rows.setdefault(
            (event.kind, axes),
            {
                "kind": event.kind,
                "axes": axes,
                "devices": len(group),
                "gib": 0.0,
                "seconds": 0.0,
                "open_seconds": 0.0,
            },
        )
        count = runs * event.times
        row["gib"] += count * event.num_bytes / GIB
        row["seconds"] += count * each
        row["open_seconds"] += count * max(
            0.0, each - event.hidden_cycles / chip.clock_hz
        )
    found = sorted(rows.values(), key=lambda row: -row["open_seconds"])
    seconds["collectives"] = sum(row["open_seconds"] for row in found)
    return seconds, found, tuple(sorted(strangers))


def _bytes(parts, texts):
    """That a step moves between memory and cores, on one device."""
    visited = flops.mean_visited(*_example(parts))
    return sum(
        (1 if part == "apply" else parts.microbatches)
        * traffic.of_module(text, visited)
        for part, text in texts.items()
    )


def _axes(mesh, group):
    """Names of the mesh axes that devices at these places differ in."""
    where = np.unravel_index(np.array(group, int), mesh.devices.shape)
    along = [a for a, n in zip(mesh.axis_names, where, strict=True) if len(set(n)) > 1]
    return "+".join(along)


def _example(parts):
    """Tokens of a row, responses, and the attention's block."""
    batch = parts.accumulate[1][2]
    return batch.tokens.shape[1], batch.table.shape[1], parts.program.compute.block


def _cycles(events):
    return sum(event.times * event.cycles for event in events)


def _kernel_flops(parts, event, part):
    """Of one call of a kernel on one chip, over the blocks that it visits: those of the
    example row, and of an encoder of one medium, or its windows, that fills its share."""
    dots = next(
        (n for known, n in flops.KERNEL_DOTS.items() if event.name.startswith(known)), 0
    )
    cfg, batch, block = parts.program.config, parts.accumulate[1][2], _example(parts)[2]
    for encoder in cfg.encoders:
        budget = batch.media[encoder.name]["segment"].shape[1]
        if budget in event.dims[2:] and batch.tokens.shape[1] not in event.dims[2:]:
            rows, heads, *last = event.dims
            near = np.mean(getattr(encoder, "windows", ()) or 0.0)
            pairs = budget * (near * min(block, budget) + (1 - near) * budget)
            return 2 * dots * pairs * rows * heads * math.prod(last) / budget
    if part == "frozen":
        cfg = parts.program.teacher or cfg
    rows, _ = batch.tokens.sharding.shard_shape(batch.tokens.shape)
    _, pairs = flops.visible_share(*_example(parts))
    shared = parts.mesh.shape["tensor"] * parts.mesh.shape["sequence"]
    return dots * flops.kernel_dot(cfg, pairs * rows) / shared


def advice(experiment: Experiment, live, chip) -> tuple[str, ...]:
    """What to change, the cheapest first."""
    compute, out = experiment.compute, []
    state = sum(live.values())
    if state > 0.8 * chip.hbm_gib:
        out.append(
            f"weights, gradients and optimizer alone take {state:.1f} of "
            f"{chip.hbm_gib} GiB: use more chips, --model.param_dtype bfloat16, or an "
            "adapter (Lora)"
        )
    if compute.remat != "full":
        out.append(f"--compute.remat full (now {compute.remat})")
    if compute.rows_per_microbatch > 1:
        out.append(
            f"--compute.rows_per_microbatch lower (now {compute.rows_per_microbatch}); a "
            "step then takes more microbatches, and learns the same"
        )
    if compute.attention != "flash":
        out.append(f"--compute.attention flash (now {compute.attention})")
    out.append(f"--compute.row_tokens lower (now {compute.row_tokens})")
    return tuple(out)
