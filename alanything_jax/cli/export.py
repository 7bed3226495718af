"""`alanything export RUN OUT`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from alanything_jax import export


def main(argv: Sequence[str]) -> int:
    """Write a run's newest checkpoint as a Hugging Face directory."""
    out = tyro.cli(export, prog="alanything export", args=list(argv))
    print(f"wrote {out}\nnext: alanything verify {out}")
    return 0
