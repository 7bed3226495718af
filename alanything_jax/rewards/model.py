"""A trained reward model's scores of responses, of any modality it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alanything_jax.data.encode import Limits, encode
from alanything_jax.schema import Example


def score_responses(
    bundle: Any, examples: Sequence[Example], batch_size: int = 32
) -> list[np.ndarray]:
    """Per example the score of each of its responses, [K] float32.

    The score is read at the response's last token of its own (its end of turn), as it was
    trained.

    Raises ValueError: the bundle has no scalar head.
    """
    if "score" not in bundle.params.get("heads", {}):
        raise ValueError(
            f"{bundle.source} has no scalar head: give a reward model, such as "
            "`alanything export` writes after the reward algorithm."
        )
    limits = Limits(*[bundle.model.config.max_positions] * 3)
    rows, ends = [], []
    for example in examples:
        for response in example.responses:
            # Alone, so that the prompt is all that comes before the response.
            alone = dataclasses.replace(example, responses=(response,))
            alone = dataclasses.replace(alone, feedback=type(example.feedback)())
            group = encode(alone, bundle.tokenizer, limits, bundle.coder)
            branch = group.branches[0]
            rows.append(np.concatenate([group.prompt, branch.tokens]))
            ends.append(len(group.prompt) + int(np.flatnonzero(branch.scored)[-1]))
    scores: list[float] = []
    width = max(32, 1 << (max(map(len, rows)) - 1).bit_length())
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        ids = np.zeros((batch_size, width), np.int32)
        mask = np.zeros_like(ids)
        for n, row in enumerate(some):
            ids[n, : len(row)], mask[n, : len(row)] = row, 1
        inputs = bundle.model.inputs(input_ids=ids, attention_mask=mask)
        found = np.asarray(bundle.model.scores(bundle.params, inputs))
        scores += [float(found[n, ends[first + n]]) for n in range(len(some))]
    sizes = np.cumsum([len(example.responses) for example in examples])
    return np.split(np.array(scores, np.float32), sizes[:-1])
