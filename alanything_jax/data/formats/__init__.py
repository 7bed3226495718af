"""One module a source: `row -> Example`, pure. A row is a dict as the file holds it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alanything_jax.data.formats import (
    align_anything,
    columns,
    easy_vqa,
    hh_rlhf,
    intermt,
    label_studio,
    sharegpt,
    trl,
)
from alanything_jax.data.formats.align_anything_columns import SUBSETS
from alanything_jax.schema import Example

Reader = Callable[[Mapping[str, Any], str], Example]

FORMATS: Mapping[str, Reader] = {
    "align_anything": align_anything.read,
    "easy_vqa": easy_vqa.read,
    "hh_rlhf": hh_rlhf.read,
    "intermt": intermt.read,
    "label_studio": label_studio.read,
    "sharegpt": sharegpt.read,
    "trl": trl.read,
}
_CLAIMS = {
    # The only rows that are lists.
    "easy_vqa": easy_vqa.claims,
    "align_anything": align_anything.claims,
    "label_studio": label_studio.claims,
    "hh_rlhf": hh_rlhf.claims,
    "intermt": intermt.claims,
    "sharegpt": sharegpt.claims,
    "trl": trl.claims,
}


def reader(
    name: str, column_map: Sequence[str] = (), row: Any = None, subset: str = ""
) -> Reader:
    """The reader of a format; "auto" looks at the first row.

    `subset` names which of Align Anything's a row is of; by default its columns tell.

    Raises ValueError: an unknown name, or a row no format claims.
    """
    if subset:
        if name not in ("auto", "align_anything") or subset not in SUBSETS:
            raise ValueError(
                f"subset {subset!r} of format {name!r}: only align_anything has subsets, "
                f"{[*SUBSETS]}."
            )
        return functools.partial(align_anything.read, subset=subset)
    if column_map:
        return columns.reader(column_map)
    if name == "auto":
        for known, claims in _CLAIMS.items():
            if claims(row):
                return FORMATS[known]
        raise ValueError(
            f"no format reads a row with the fields {sorted(row)}. Name the format (one "
            f"of {sorted(FORMATS)}), or map columns, such as prompt=question,"
            "chosen=good,rejected=bad."
        )
    if name not in FORMATS:
        raise ValueError(f"format {name!r}: choose auto or one of {sorted(FORMATS)}.")
    return FORMATS[name]
