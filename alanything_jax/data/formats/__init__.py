"""One module a source: `row -> Example`, pure. A row is a dict as the file holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alanything_jax.data.formats import columns, hh_rlhf, label_studio, sharegpt, trl
from alanything_jax.schema import Example

Reader = Callable[[Mapping[str, Any], str], Example]

FORMATS: Mapping[str, Reader] = {
    "hh_rlhf": hh_rlhf.read,
    "label_studio": label_studio.read,
    "sharegpt": sharegpt.read,
    "trl": trl.read,
}
_CLAIMS = {
    "label_studio": label_studio.claims,
    "hh_rlhf": hh_rlhf.claims,
    "sharegpt": sharegpt.claims,
    "trl": trl.claims,
}


def reader(name: str, column_map: Sequence[str] = (), row: Any = None) -> Reader:
    """The reader of a format; "auto" looks at the first row.

    Raises ValueError: an unknown name, or a row no format claims.
    """
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
