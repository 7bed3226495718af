"""A reward model's scores are those it was trained to give, for every modality."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data.encode import Limits, encode
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.ops import masked
from alanything_jax.playground import tasks
from alanything_jax.rewards.model import TrainedReward, score_responses
from alanything_jax.schema import Message, Part, Response
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


def test_an_answer_that_cannot_be_read_costs_no_other_its_score():
    """Such as an empty one: of a rollout it is one row of many."""
    made = TrainedReward(ModelSource("playground:48x1"))
    prompt, good = list(tasks.pairs(1, 0))[0].prompt, said("one red circle")
    rows = [(prompt, answer, {"id": "a"}) for answer in (good, said(""), good)]
    first, empty, last = made(rows)
    assert np.isfinite(first) and first == last and np.isnan(empty)
    assert np.isnan(made(rows[1:2])).tolist() == [True]


def said(text):
    return Response((Message("assistant", (Part("text", text=text),)),))


def test_a_policy_is_no_reward_model():
    bundle = load_model(ModelSource("playground:48x1"))
    with pytest.raises(ValueError, match="has no scalar head"):
        score_responses(bundle, list(tasks.pairs(1, 0)))
    assert dataclasses.is_dataclass(bundle)
