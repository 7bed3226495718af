"""`alanything annotate CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alanything_jax import annotate
from alanything_jax.cli import recipe


def main(argv: Sequence[str]) -> int:
    """Responses of several models, graded, compared and criticised by a judge."""
    call = recipe.parse("annotate", argv, "configs/annotate.py")
    run = Path(call.run_dir or Path("runs") / call.experiment.name)
    made = annotate(call.experiment, run)
    print(f"wrote {', '.join(map(str, made))}; why records ended: {run}/yield.json")
    if made[-1].name == "label_studio":
        print("next: import each folder's tasks.json into Label Studio (labels.xml is")
        print("the interface), annotate, and give its JSON export as --annotated FILE")
    else:
        print(f"next: alanything data inspect {made[-1]}")
    return 0
