"""A reward model's scores are those it was trained to give, for every modality."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data.encode import Limits, encode
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.ops import masked
from alanything_jax.playground import tasks
from alanything_jax.rewards.model import score_responses
from tests import toys


def test_scores_equal_the_trainers(monkeypatch):
    bundle = load_model(ModelSource("playground:48x2"), score_head=True, seed=3)
    examples = list(tasks.pairs(9, 4))
    found = score_responses(bundle, examples, batch_size=4)
    groups = [encode(e, bundle.tokenizer, Limits(), bundle.coder) for e in examples]
    (batch,), planned = toys.pack(groups, rows=9, row_tokens=160, numbers=())
    from alanything_jax.data import packing
    from alanything_jax.models import decoder, heads

    hidden = decoder.hidden(bundle.params, bundle.model.config, batch)
    rewards = masked.response_last(heads.scores(bundle.params, hidden), batch)
    slots = packing.slots(planned[0])
    for n, example in enumerate(examples):
        # Groups put the chosen response first; the scores keep the record's order.
        order = [example.feedback.chosen, 1 - example.feedback.chosen]
        ours = np.asarray(rewards)[np.asarray(batch.table)[slots[n]]]
        np.testing.assert_allclose(found[n][order], ours, atol=1e-5)


def test_a_policy_is_no_reward_model():
    bundle = load_model(ModelSource("playground:48x1"))
    with pytest.raises(ValueError, match="has no scalar head"):
        score_responses(bundle, list(tasks.pairs(1, 0)))
    assert dataclasses.is_dataclass(bundle)
