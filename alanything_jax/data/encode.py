"""(dataclasses by the lead, the rest by the data worker)"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Branch:
    tokens: np.ndarray
    scored: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncodedGroup:
    id: str
    prompt: np.ndarray
    branches: tuple[Branch, ...]
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truncated: bool = False
