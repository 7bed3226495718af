"""`alanything export RUN OUT [--push OWNER/NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from alanything_jax import export
from alanything_jax.pipelines.export import push as push_run


def export_run(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    adapter: bool = False,
    push: str = "",
    dry_run: bool = True,
) -> Path:
    """Write a run's newest checkpoint as a Hugging Face directory.

    Args:
      run: what `alanything train` wrote.
      out: new or empty; with --push, it may hold that export already.
      adapter: the LoRA alone, in PEFT's layout, instead of merged weights.
      push: OWNER/NAME on the Hugging Face hub, a private repository.
      dry_run: only show what --push would upload; --no-dry-run uploads it.
    """
    if push:
        return push_run(run, out, push, adapter=adapter, dry_run=dry_run)
    if not dry_run:
        raise ValueError("--no-dry-run is for --push OWNER/NAME, which is not given.")
    return export(run, out, adapter=adapter)


def main(argv: Sequence[str]) -> int:
    """Parse and export."""
    out = tyro.cli(export_run, prog="alanything export", args=list(argv))
    if (out / "adapter_config.json").exists():
        print(f"wrote {out}\nnext: peft.PeftModel.from_pretrained(base, {str(out)!r})")
    else:
        print(f"wrote {out}\nnext: alanything verify {out}")
    return 0
