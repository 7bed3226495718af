"""`alanything export RUN OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from alanything_jax import export


def export_run(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    adapter: bool = False,
) -> Path:
    """Write a run's newest checkpoint as a Hugging Face directory.

    Args:
      run: what `alanything train` wrote.
      out: new or empty.
      adapter: the LoRA alone, in PEFT's layout, instead of merged weights.
    """
    return export(run, out, adapter=adapter)


def main(argv: Sequence[str]) -> int:
    """Parse and export."""
    out = tyro.cli(export_run, prog="alanything export", args=list(argv))
    if (out / "adapter_config.json").exists():
        print(f"wrote {out}\nnext: peft.PeftModel.from_pretrained(base, {str(out)!r})")
    else:
        print(f"wrote {out}\nnext: alanything verify {out}")
    return 0
