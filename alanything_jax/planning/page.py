"""A plan as a table for the terminal and as a page: where memory and time go."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLOURS = ("#3b6ea5", "#6c9a5b", "#d08c34", "#9b5f9b", "#b5504a", "#5b9aa0", "#888")


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of a plan's figures, as `Plan.to_json` gives them."""
    out = [
        ("recipe", figures["recipe"]),
        ("chips", f"{figures['chips']}: {figures['slices']} x {figures['topology']}"),
        (
            "memory per chip",
            f"{figures['hbm_gib_per_chip']:.2f} of {figures['hbm_limit_gib']} GiB: "
            + ("fits" if figures["fits"] else "DOES NOT FIT"),
        ),
        *(
            (f"  {kind}", f"{gib:.2f} GiB")
            for kind, gib in figures["hbm_gib_by_kind"].items()
        ),
    ]
    if not figures["estimated_step_s"]:
        return [*out, ("compiled in", f"{figures['compile_s']:.0f} s")]
    out += [
        (
            "step, estimated",
            f"{figures['estimated_step_s']:.3f} s, MFU {figures['estimated_mfu']:.1%}",
        ),
        (
            "  collectives hidden",
            f"{figures['compute_bound_step_s']:.3f} s, MFU {figures['compute_bound_mfu']:.1%}",
        ),
        *_without_lookup(figures),
        *(
            (f"  {kind}", f"{seconds:.3f} s")
            for kind, seconds in figures["seconds_by_component"].items()
        ),
        (
            "tokens",
            f"{figures['tokens_per_step']} a step, "
            f"{figures['tokens_per_s_per_chip']:.0f} a second and chip",
        ),
        ("FLOPs per chip", f"{figures['flops_per_chip']:.3g} in the program"),
        ("  the model's", f"{figures['model_flops_per_chip']:.3g}"),
        ("bytes per chip", _moved(figures)),
    ]
    if strange := figures["kernels_not_charged"]:
        out.append(("kernels not charged", ", ".join(strange)))
    for row in figures["collectives"]:
        if row["gib"] >= 0.01:
            out.append(
                (
                    f"{row['kind']} over {row['devices']}, {row['axes']}",
                    f"{row['gib']:.1f} GiB, {row['seconds']:.3f} s, "
                    f"{row['open_seconds']:.3f} s in the open",
                )
            )
    return [*out, ("compiled in", f"{figures['compile_s']:.0f} s")]


def _moved(figures):
    """To and from memory, and the least time that takes."""
    moved = figures["hbm_bytes_per_chip"]
    return (
        f"{moved:.3g} of memory, {moved / figures['hbm_bytes_per_s']:.3f} s at its peak"
    )


def _without_lookup(figures):
    """MFU as it is where the input embedding, which multiplies nothing, has no 6 N."""
    share = 1 - figures["lookup_flops_per_chip"] / figures["model_flops_per_chip"]
    if share == 1:
        return []
    both = [share * figures[f"{name}_mfu"] for name in ("estimated", "compute_bound")]
    said = f"MFU {both[0]:.1%}; collectives hidden {both[1]:.1%}"
    return [("  embedding not counted", said)]


def table(figures: Mapping[str, Any]) -> Table:
    """For the terminal."""
    out = Table(title="plan (times are estimates)", show_header=False)
    for what, much in rows(figures):
        out.add_row(what, much)
    return out


HOW = (
    "Memory is the TPU compiler's. Time is an estimate: the compiler's own cycles of "
    "each operation, times the loops around it; attention kernels at half of the chip's "
    "peak, over the blocks they visit; collectives at their links' bandwidth, as far as "
    "the schedule leaves them in the open. Each row of tokens is taken to hold one group: "
    "a prompt of half a row, and responses that share the rest. MFU counts 6 FLOPs a "
    "parameter and token (2 for a live reference, 4 for a frozen base under an adapter) "
    "and attention over visible pairs; neither padding nor rematerialization. Of all "
    "parameters, the input embedding too, which is looked up: a line says what MFU is "
    "without it."
)


def page(figures: Mapping[str, Any]) -> str:
    """One HTML page without scripts or links."""
    head = html.escape(f"{figures['recipe']} on {figures['topology']}")
    lines = "".join(
        f"<tr><td>{html.escape(what).replace('  ', '&emsp;')}</td>"
        f"<td>{html.escape(much)}</td></tr>"
        for what, much in rows(figures)
    )
    memory = bar(figures["hbm_gib_by_kind"], figures["hbm_limit_gib"], "GiB")
    time = bar(figures["seconds_by_component"], None, "s")
    advice = "".join(f"<li>{html.escape(line)}</li>" for line in figures["advice"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{head}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;"
        "padding:0 1rem;color:#222}td{padding:.15rem 1.2rem .15rem 0;vertical-align:top}"
        "svg{width:100%;height:auto}.note{color:#555}</style>"
        f"<h1>{head}</h1><h2>Memory of one chip</h2>{memory}<h2>Time of one step</h2>"
        f"{time}<h2>Figures</h2><table>{lines}</table>"
        + (f"<h2>What to change</h2><ul>{advice}</ul>" if advice else "")
        + f"<p class=note>{html.escape(HOW)}</p></html>"
    )


def bar(parts: Mapping[str, float], limit: float | None, unit: str) -> str:
    """A stacked bar with a legend, as SVG; `limit` is marked, if there is one."""
    total = sum(parts.values())
    if not total:
        return "<p>not known: the compiler stopped.</p>"
    scale = 780 / max(total, limit or 0)
    x, shapes, legend = 10.0, [], []
    for number, (kind, value) in enumerate(parts.items()):
        colour = COLOURS[number % len(COLOURS)]
        width = value * scale
        shapes.append(
            f'<rect x="{x:.1f}" y="10" width="{width:.1f}" height="36" fill="{colour}"/>'
        )
        y = 74 + 22 * number
        legend.append(
            f'<rect x="10" y="{y - 12}" width="14" height="14" fill="{colour}"/>'
            f'<text x="32" y="{y}" font-size="15">{html.escape(kind)}: '
            f"{value:.3g} {unit}</text>"
        )
        x += width
    if limit:
        at = 10 + limit * scale
        shapes.append(
            f'<path d="M{at:.1f} 2V54" stroke="#b00" stroke-width="3"/>'
            f'<text x="{at - 6:.1f}" y="68" font-size="13" text-anchor="end">'
            f"limit {limit:g} {unit}</text>"
        )
    height = 70 + 22 * len(parts)
    return (
        f'<svg viewBox="0 0 800 {height}" role="img">{"".join(shapes + legend)}</svg>'
    )
