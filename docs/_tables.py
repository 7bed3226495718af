"""Tables of models.md and data.md: the names of their columns and their rows."""

from __future__ import annotations

import inspect
import sys
from typing import Any

Table = tuple[list[str], list[list[str]]]


def families() -> Table:
    """A row per family: what goes in and out, and its module's own words."""
    from alanything_jax.models.families import FAMILIES

    rows = []
    for name, family in FAMILIES.items():
        out = ["text"]
        if family.codes:
            out.append("images drawn" if family.drawing else "images in answers")
        takes = ", ".join(["text", *media_of(name, family)])
        head = family.classifier or "score.safetensors"
        about = about_of(family.config)
        rows.append([f"`{name}`", takes, ", ".join(out), about, f"`{head}`"])
    return ["`model_type`", "in", "out", "what", "reward head"], rows


def media_of(name: str, family: Any) -> tuple[str, ...]:
    """Kinds of media that a family reads, by its small model or its codec."""
    from alanything_jax.hub.tiny import MEDIA

    # Omni reads what its thinker reads.
    small = MEDIA.get(name) or MEDIA.get(f"{name}_thinker")
    return small[1] if small else ("image",) * bool(family.codes)


def codecs() -> Table:
    """A row per codec, with the sizes that its class begins with."""
    from alanything_jax.models.codecs import CODECS, HF

    rows = []
    for name, kind in CODECS.items():
        read = [k for k, module in HF.items() if module.__name__ == kind.__module__]
        where = ", ".join(f"`{k}`" for k in read) or "–"
        made = kind()
        sizes = f"{made.size:,}", f"{made.length:,}"
        rows.append([f"`{name}`", made.kind, about_of(kind), *sizes, where])
    names = ["codec", "kind", "what", "codes", "of a medium"]
    return [*names, "read from `model_type`"], rows


def formats() -> Table:
    """A row per reader of rows."""
    from alanything_jax.data.formats import FORMATS

    rows = [[f"`{name}`", about_of(read)] for name, read in FORMATS.items()]
    return ["`--format`", "rows of"], rows


def subsets() -> Table:
    """A row per subset of Align Anything, from the table of its columns."""
    from alanything_jax.data.formats.align_anything_columns import SUBSETS

    def named(columns):
        each = (c.replace("{n}", "1|2") for c in columns.split("|"))
        return " or ".join(f"`{column}`" for column in each)

    def held(entries):
        return "; ".join(f"{kind}: {named(columns)}" for kind, columns in entries)

    rows = []
    for name, subset in SUBSETS.items():
        prompt = held([("text", subset.prompt), *subset.media])
        better = named("|".join(f"overall_{t}" for t in subset.target.split("|")))
        row = [f"`{name}`", f"`{subset.folder}`", prompt]
        rows.append([*row, held(subset.responses), better])
    return ["subset", "folder", "prompt", "responses", "better"], rows


def about_of(value: Any) -> str:
    """The first paragraph of the module that a function or class is in."""
    about = inspect.getdoc(sys.modules[value.__module__])
    return " ".join(about.partition("\n\n")[0].split())


TABLES = {
    "families": families,
    "codecs": codecs,
    "formats": formats,
    "align_anything": subsets,
}
