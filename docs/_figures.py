"""Figures of concepts.md, drawn by the code that they explain."""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping
from typing import Any


def row() -> Any:
    """The row of concepts.md as the packer lays it out: a pair, and one answer."""
    import numpy as np

    from alanything_jax.data import packing
    from alanything_jax.data.encode import Branch, EncodedGroup

    def group(name, prompt, *responses):
        branches = tuple(
            Branch(np.arange(n, dtype=np.int32), np.ones(n, bool)) for n in responses
        )
        return EncodedGroup(name, np.arange(prompt, dtype=np.int32), branches)

    layout = packing.Layout(rows=1, row_tokens=12, groups=2, responses=2)
    groups = [group("pair", 3, 2, 3), group("answer", 2, 1)]
    (rows,) = packing.plan(groups, layout, couples=True)
    return packing.lay_out(groups, rows, layout)


def rule() -> str:
    """Who sees whom in that row, from the function that attention asks, as SVG."""
    import numpy as np

    from alanything_jax.models import attention

    batch, size, at = row(), 26, 60
    asks = attention.rows_of(batch)
    seen = np.asarray(attention.visible(asks, asks))[0]
    group, branch = batch.group[0], batch.branch[0]
    names = [letter(g, b) for g, b in zip(group, branch)]
    colours = {
        "p": "#9fa8da",
        "q": "#9fa8da",
        "a": "#ffb74d",
        "b": "#81c784",
        ".": "#eee",
    }
    end = at + size * len(names)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {end + 12} {end + 12}" '
        f'width="{end + 12}" font-family="sans-serif" font-size="13" '
        'style="background:#fff"><text x="8" y="18">query (down) sees key (across)</text>'
    ]

    def cell(x, y, colour, text=""):
        out.append(
            f'<rect x="{x}" y="{y}" width="{size - 2}" height="{size - 2}" rx="3" '
            f'fill="{colour}"/><text x="{x + size / 2 - 1}" y="{y + 17}" '
            f'text-anchor="middle">{html.escape(text)}</text>'
        )

    for n, name in enumerate(names):
        cell(at + n * size, at - size - 4, colours[name], name)
        cell(at - size - 4, at + n * size, colours[name], name)
        for k, key in enumerate(names):
            colour = colours[key] if seen[n, k] else "#f5f5f5"
            cell(at + k * size, at + n * size, colour)
    return "".join([*out, "</svg>"])


def letter(group: int, branch: int) -> str:
    """How concepts.md writes a token: p or q of a prompt, a or b of a response."""
    if not group:
        return "."
    return "ab"[branch - 1] if branch else "pq"[group - 1]


@functools.cache
def pair() -> tuple[Any, Mapping[str, tuple[bytes, str, str]]]:
    """A record of the playground, and its pictures: file -> (PNG, oracle's words, name)."""
    import numpy as np

    from alanything_jax.data import media
    from alanything_jax.playground import oracle, tasks

    example = next(tasks.pairs(1, seed=7))
    out = {}
    for n, response in enumerate(example.responses):
        (shown,) = [p for m in response.messages for p in m.parts if p.kind == "image"]
        array = media.load(shown)[0].repeat(6, axis=0).repeat(6, axis=1)
        said = oracle.critique(oracle.score(example, response))
        name = "chosen" if n == example.feedback.chosen else "rejected"
        picture = media.dump("image", np.ascontiguousarray(array))
        out[f"img/{name}.png"] = (picture, said, name)
    return example, out
