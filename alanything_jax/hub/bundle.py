"""A loaded model with everything needed to write it back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What `hub.load` returns.

    Attributes:
      model: family and config; pure functions.
      params: nested dict of arrays.
      tokenizer: transformers' fast tokenizer, or None where the directory has none.
      hf_config: config.json as it was read, spelling kept.
      source: what was asked for.
      directory: the local Hugging Face directory, if there is one.
      generation_config: as read.
      extra: tensors we do not use, passed through on export.
      dtypes: name on disk -> dtype there, kept on export.
      names: the family's name of a tensor -> its name on disk, where it was read.
      processor: file name without its ending -> content, of the processor's files where no
        directory has them.
      coder: media to tokens and back, of an any-to-any model; None for text.
    """

    model: Model
    params: dict[str, Any]
    tokenizer: Any
    hf_config: dict[str, Any]
    source: str
    directory: Path | None = None
    generation_config: dict[str, Any] | None = None
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    coder: Coder | None = None
