"""A trained reward model's scores of responses, of any modality it was trained on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from alanything_jax.data import packing, soft
from alanything_jax.data.encode import Limits, encode
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.rewards.combine import Row
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class TrainedReward:
    """A reward model's score, as a `batched` term of `combine.Rewards`.

    Attributes:
      source: what `alanything train` and `export` made of the reward algorithm; of a cost
        model likewise.
    """

    source: ModelSource
    batch_size: int = 32

    def __call__(self, rows: Sequence[Row]) -> list[float]:
        """One score a row; NaN for a row that the model cannot read, such as an empty one."""
        examples = [
            Example(str(record.get("id", n)), tuple(prompt), (response,), extra=record)
            for n, (prompt, response, record) in enumerate(rows)
        ]
        bundle, groups = _loaded(self.source), {}
        for n, example in enumerate(examples):
            with contextlib.suppress(ValueError):
                groups[n] = _encoded(bundle, example)
        found = _score(bundle, [*groups.values()], self.batch_size)
        known = dict(zip(groups, found, strict=True))
        return [known.get(n, float("nan")) for n in range(len(rows))]


@functools.lru_cache(maxsize=4)
def _loaded(source):
    return load_model(source, score_head=True)


def score_responses(
    bundle: Any, examples: Sequence[Example], batch_size: int = 32
) -> list[np.ndarray]:
    """Per example the score of each of its responses, [K] float32.

    The score is read at the response's last token of its own (its end of turn), as it was
    trained.

    Raises ValueError: the bundle has no scalar head.
    """
    groups = [
        # Alone, so that the prompt is all that comes before the response.
        _encoded(bundle, dataclasses.replace(example, responses=(response,)))
        for example in examples
        for response in example.responses
    ]
    sizes = np.cumsum([len(example.responses) for example in examples])
    scores = _score(bundle, groups, batch_size)
    return np.split(np.array(scores, np.float32), sizes[:-1])


def _encoded(bundle, example):
    limits = Limits(*[bundle.model.config.max_positions] * 3)
    bare = dataclasses.replace(example, feedback=type(example.feedback)())
    return encode(bare, bundle.tokenizer, limits, bundle.coder)


def _score(bundle, groups, batch_size):
    """Of groups of one response each."""
    if "score" not in bundle.params.get("heads", {}):
        raise ValueError(
            f"{bundle.source} has no scalar head: give a reward model, such as "
            "`alanything export` writes after the reward algorithm."
        )
    scores: list[float] = []
    if not groups:
        return scores
    config = bundle.model.config
    longest = max(map(packing.group_length, groups))
    width = max(32, 1 << (longest - 1).bit_length())
    media = [
        soft.plan_of(encoder, max(sizes))
        for encoder, sizes in packing.media_needs(groups, config.encoders)
    ]
    for first in range(0, len(groups), batch_size):
        some = groups[first : first + batch_size]
        batch = packing.one_a_row(some, batch_size, width, media)
        every = np.asarray(bundle.model.scores(bundle.params, batch))
        scores += [
            float(every[n, np.flatnonzero(batch.source[n] >= 0)[-1]])
            for n in range(len(some))
        ]
    return scores
