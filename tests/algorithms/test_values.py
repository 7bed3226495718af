"""Losses by hand in numpy, one pair at a time, straight from the papers' equations."""

import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax.algorithms import critique, dpo, reward, sft
from alanything_jax.algorithms.base import Outputs
from tests import toys


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# h, the difference of log-ratios, to the loss of a pair; b is beta.
LINKS = {
    "sigmoid": lambda h, b: -np.log(sigmoid(b * h)),
    "hinge": lambda h, b: max(0.0, 1 - b * h),
    "ipo": lambda h, b: (h - 1 / (2 * b)) ** 2,
}


def packed(seed=0):
    items = toys.groups(np.random.default_rng(seed), 4, 2)
    (batch,), (rows,) = toys.pack(items, rows=4, row_tokens=40)
    order = dict.fromkeys(p.group for row in rows for p in row)
    return batch, [items[g] for g in order]


def token_values(batch, seed):
    shape = batch.tokens.shape
    return jnp.asarray(np.random.default_rng(seed).normal(-2, 1, shape), jnp.float32)


def sums(values, batch):
    """[G, 2] by a loop over every token."""
    out = np.zeros(batch.table.shape)
    for (r, t), flat in np.ndenumerate(np.asarray(batch.response)):
        if flat >= 0:
            g, k = np.argwhere(np.asarray(batch.table) == flat)[0]
            out[g, k] += float(values[r, t])
    return out


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("link", LINKS)
def test_dpo(link, smoothing):
    batch, _ = packed()
    policy, fixed = token_values(batch, 1), token_values(batch, 2)
    algorithm = dpo.DPO(0.3, getattr(dpo, link), smoothing)
    outputs = {"policy": Outputs(logps=policy), "reference": Outputs(logps=fixed)}
    reference = jnp.asarray(sums(fixed, batch), jnp.float32).reshape(-1)
    flat = np.zeros(batch.num_responses, np.float32)
    flat[np.asarray(batch.table).ravel()] = reference
    numbers = {"reference_sum": jnp.asarray(flat)}
    terms, metrics = algorithm.loss(batch.replace(numbers=numbers), outputs)
    ratio = sums(policy, batch) - sums(fixed, batch)
    h = ratio[:, 0] - ratio[:, 1]
    by_hand = [
        (1 - smoothing) * LINKS[link](x, 0.3) + smoothing * LINKS[link](-x, 0.3)
        for x in h
    ]
    assert float(terms["dpo"].count) == 4
    np.testing.assert_allclose(float(terms["dpo"].total), sum(by_hand), rtol=1e-4)
    assert float(metrics["reward_accuracy"].total) == (h > 0).sum()
    np.testing.assert_allclose(
        float(metrics["reward_margin"].total), 0.3 * h.sum(), rtol=1e-4
    )


@pytest.mark.parametrize(
    "margin_scale,centring", [(0, 0), (1.0, 0), (0, 0.01), (0.5, 0.1)]
)
def test_reward(margin_scale, centring):
    batch, items = packed()
    scores = token_values(batch, 3)
    algorithm = reward.Reward(margin_scale, centring)
    terms, _ = algorithm.loss(batch, {"reward": Outputs(scores=scores)})
    index, table = np.asarray(batch.index), np.asarray(batch.table)
    last = np.zeros(table.shape)
    for (g, k), flat in np.ndenumerate(table):
        places = np.argwhere(np.asarray(batch.response) == flat)
        r, t = max(places, key=lambda p: index[tuple(p)])
        last[g, k] = scores[r, t]
    margins = np.array([float(item.numbers["margin"]) for item in items])
    gap = last[:, 0] - last[:, 1] - margin_scale * margins
    loss = -np.log(sigmoid(gap)).sum()
    np.testing.assert_allclose(float(terms["bradley_terry"].total), loss, rtol=1e-4)
    if centring:
        assert terms["centring"].weight == centring
        np.testing.assert_allclose(
            float(terms["centring"].total), (last.sum(1) ** 2).sum(), rtol=1e-4
        )
    else:
        assert "centring" not in terms


def test_sft_is_a_mean_over_tokens():
    batch, _ = packed()
    logps = token_values(batch, 4)
    terms, _ = sft.SFT().loss(batch, {"policy": Outputs(logps=logps)})
    scored = np.asarray(batch.scored)
    assert float(terms["nll"].count) == scored.sum()
    np.testing.assert_allclose(
        float(terms["nll"].total), -np.asarray(logps)[scored].sum(), rtol=1e-5
    )


def test_dpo_with_a_second_term_on_the_chosen():
    batch, _ = packed()
    policy = token_values(batch, 1)
    fixed = jnp.zeros(batch.num_responses, jnp.float32)
    batch = batch.replace(numbers={"reference_sum": fixed})
    outputs = {"policy": Outputs(logps=policy), "reference": Outputs(logps=policy)}
    terms, _ = dpo.DPO(nll_weight=0.5).loss(batch, outputs)
    chosen = np.isin(np.asarray(batch.response), np.asarray(batch.table)[:, 0])
    assert terms["nll"].weight == 0.5
    assert float(terms["nll"].count) == chosen.sum()
    total = -np.asarray(policy)[chosen].sum()
    np.testing.assert_allclose(float(terms["nll"].total), total, rtol=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
def test_critique_is_a_mean_over_critiques_or_tokens(per_token):
    batch, _ = packed()
    logps = token_values(batch, 5)
    terms, metrics = critique.Critique(per_token).loss(
        batch, {"critic": Outputs(logps=logps)}
    )
    scored = np.asarray(batch.scored)
    responses = int((np.asarray(batch.table) >= 0).sum())
    total = -np.asarray(logps)[scored].sum()
    assert float(terms["nll"].count) == (scored.sum() if per_token else responses)
    np.testing.assert_allclose(float(terms["nll"].total), total, rtol=1e-5)
    per_critique = metrics["nll_per_critique"]
    np.testing.assert_allclose(
        float(per_critique.total / per_critique.count), total / responses, rtol=1e-5
    )


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="beta must be above 0"):
        dpo.DPO(beta=0.0)
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 0.5\)"):
        dpo.DPO(label_smoothing=0.5)
