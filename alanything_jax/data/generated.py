"""Rows made on the spot for `--tiny` runs: no download, one lesson that can be learnt.

The prompt names a letter; the chosen answer repeats that letter, the rejected one
repeats another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def preference_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` preference pairs in TRL's conversational layout.

    Example:
      {"prompt": [{"role": "user", "content": "say c"}],
       "chosen": [{"role": "assistant", "content": "ccc"}],
       "rejected": [{"role": "assistant", "content": "ttt"}],
       "score_chosen": 2.0, "score_rejected": 1.0}
    """
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    for _ in range(count):
        good, bad = rng.choice(letters, 2, replace=False)
        sizes = rng.integers(2, 9, 2)
        yield {
            "prompt": [{"role": "user", "content": f"say {good}"}],
            "chosen": [{"role": "assistant", "content": str(good) * int(sizes[0])}],
            "rejected": [{"role": "assistant", "content": str(bad) * int(sizes[1])}],
            "score_chosen": 2.0,
            "score_rejected": 1.0,
        }
