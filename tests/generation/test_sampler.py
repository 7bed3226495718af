"""Picking a token: against transformers' own filters, and at the ends of the uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as peer

from alanything_jax.generation import sampler
from alanything_jax.generation.sampler import Sampling, sample

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(5, 300)) * 3).astype(np.float32)
SEEN = RNG.integers(0, 300, (5, 40))


def theirs(sampling):
    """Scores as transformers' processors leave them, in its order."""
    ids, scores = torch.tensor(SEEN), torch.tensor(LOGITS)
    steps = [peer.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    steps.append(peer.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(peer.TopKLogitsWarper(sampling.top_k))
    steps.append(peer.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(peer.MinPLogitsWarper(sampling.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1).numpy()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, top_p=0.8),
        Sampling(1.3, top_k=7),
        Sampling(1.0, min_p=0.05),
        Sampling(0.9, repetition_penalty=1.5),
        Sampling(1.1, 0.9, 30, 0.02, 0.8),
    ],
)
def test_the_distribution_is_transformers(sampling):
    """Tokens at 4,000 even steps of the uniform: each as often as its probability."""
    steps, want = 4000, theirs(sampling)
    seen = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen, SEEN, True, axis=1)
    scaled = LOGITS / sampling.temperature
    penalty = sampling.repetition_penalty
    less = np.where(scaled < 0, scaled * penalty, scaled / penalty)
    wanted = jnp.array(np.where(seen, less, scaled) if penalty != 1 else scaled)

    @jax.jit
    def draw(u):
        return sampler._draw(wanted, wanted.max(-1), jnp.full(5, u), sampling)

    grid = jnp.array((np.arange(steps) + 0.5) / steps, jnp.float32)
    tokens = np.asarray(jax.jit(lambda g: jax.lax.map(draw, g))(grid))
    for row in range(5):
        share = np.bincount(tokens[:, row], minlength=300) / steps
        np.testing.assert_allclose(share, want[row], atol=1.01 / steps)
        assert (want[row][tokens[:, row]] > 0).all()
    keys = jax.random.split(jax.random.key(1), 5)
    taken, logps = sample(
        jnp.array(LOGITS),
        keys,
        sampling,
        None,
        jnp.array(seen) if penalty != 1 else None,
    )
    # Recorded is the softmax before all filters and penalties.
    plain = jax.nn.log_softmax(scaled)
    np.testing.assert_allclose(
        logps, np.take_along_axis(plain, np.asarray(taken)[:, None], 1)[:, 0], atol=1e-5
    )
    assert (want[np.arange(5), np.asarray(taken)] > 0).all()


@pytest.mark.parametrize("size", [3, 128, 1000])
def test_ends_of_the_uniform(size):
    """Never a token of no probability, at 0 and just below 1; every block may be empty."""
    logits = np.full((4, size), -np.inf, np.float32)
    logits[0, 0] = logits[1, -1] = 0.0
    logits[2, size // 2 :] = RNG.normal(size=size - size // 2)
    logits[3] = -200.0
    logits[3, 1] = 5.0
    for u in (0.0, 1 - 2**-24, 0.5):
        got = sampler._draw(
            jnp.array(logits), jnp.array(logits.max(-1)), jnp.full(4, u), Sampling()
        )
        got = np.asarray(got)
        assert got[0] == 0 and got[1] == size - 1 and got[3] == 1
        assert np.isfinite(logits[2, got[2]])
    assert got[2] > size // 2 or size == 3


def test_greedy_takes_the_first_of_equals():
    logits = np.zeros((3, 500), np.float32)
    logits[0, [130, 131, 400]] = 2.0
    logits[1, 499] = 1.0
    keys = jax.random.split(jax.random.key(0), 3)
    tokens, _ = sample(jnp.array(logits), keys, Sampling(0.0))
    assert tokens.tolist() == [130, 499, 0]


def test_nothing_is_sorted():
    def ops(sampling):
        keys = jax.random.split(jax.random.key(0), 5)
        text = jax.jit(lambda x: sample(x, keys, sampling)).lower(LOGITS).as_text()
        return {op for op in ("sort", "top_k", "while") if f".{op}" in text}

    assert ops(Sampling(1.0)) <= {"while"} and not ops(Sampling(0.0))
    assert "sort" not in ops(Sampling(1.0, 0.9, 50, 0.1))


def test_what_cannot_be():
    for bad in ({"min_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="min_p must be in .0, 1., repetition_pen"):
            Sampling(**bad)
