"""Log-probs over what the grammar allows, against float64 numpy; and their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from alanything_jax.models import heads
from alanything_jax.models.grammar import Block, Grammar
from tests import toys

IMAGE = Block("image", 3, 40, 10, 4)
AUDIO = Block("audio", 4, 50, 8, 3, stop=True)
TEXT = toys.CONFIG
GRAMMAR = Grammar(40, (IMAGE, AUDIO))
# Ids 59 and 60 pad the vocabulary: no stream allows them.
RANGES = ((0, 40), (40, 50), (40, 50), (50, 58), (50, 59))


def setting(tied, grammar=GRAMMAR, seed=0):
    """Config, parameters, hidden states and a batch of random tokens in streams."""
    rng = np.random.default_rng(seed)
    cfg = dataclasses.replace(TEXT, tied=tied, grammar=grammar)
    items = toys.groups(rng, 6, gaps=True)
    (batch,), _ = toys.pack(items, rows=3, row_tokens=40)
    shape = batch.tokens.shape
    stream = rng.integers(0, 5 if grammar else 1, shape)
    low, high = np.moveaxis(np.array(RANGES)[stream], -1, 0)
    if grammar is None:
        high = np.full(shape, cfg.vocab_size)
    batch = batch.replace(
        tokens=jnp.asarray(rng.integers(low, high), jnp.int32),
        stream=jnp.asarray(stream, jnp.int32),
    )
    params = toys.parameters(cfg)
    hidden = jnp.asarray(rng.normal(size=(*shape, cfg.width)), jnp.float32)
    return cfg, params, hidden, batch, (low, high)


def by_hand(cfg, params, hidden, batch, bounds, temperature, weights):
    """Float64: log-probs [B, T], and the gradients of their weighted sum by hidden
    states and kernel."""
    kernel = np.asarray(heads.lm_kernel(params, cfg), np.float64)
    hidden, source = np.asarray(hidden, np.float64), np.asarray(batch.source)
    out, by_hidden = np.zeros(source.shape), np.zeros(hidden.shape)
    by_kernel = np.zeros(kernel.shape)
    for b, t in zip(*np.nonzero(source >= 0)):
        some = slice(int(bounds[0][b, t]), int(bounds[1][b, t]))
        state, token = hidden[b, source[b, t]], int(batch.tokens[b, t]) - some.start
        z = state @ kernel[:, some] / temperature
        logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
        out[b, t] = logp[token]
        slope = (np.arange(len(z)) == token) - np.exp(logp)
        slope = slope * weights[b, t] / temperature
        by_hidden[b, source[b, t]] += kernel[:, some] @ slope
        by_kernel[:, some] += np.outer(state, slope)
    return out, by_hidden, by_kernel


@pytest.mark.parametrize("tied, temperature", [(True, 1.0), (False, 0.7)])
def test_values_and_gradients_equal_numpy(tied, temperature):
    cfg, params, hidden, batch, bounds = setting(tied)
    weights = np.random.default_rng(1).normal(size=batch.tokens.shape)
    out, by_hidden, by_kernel = by_hand(
        cfg, params, hidden, batch, bounds, temperature, weights
    )

    def total(params, hidden):
        logps = heads.token_logps(
            params, cfg, hidden, batch, temperature=temperature, chunk=16
        )
        return jnp.sum(logps * weights), logps

    learnt = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (by_params, slope), logps = learnt(params, hidden)
    np.testing.assert_allclose(logps, out, atol=2e-5)
    np.testing.assert_allclose(slope, by_hidden, atol=2e-5)
    found = by_params["embed"]["text"]["table"].T
    if not tied:
        assert not found.any()
        found = by_params["heads"]["text"]["kernel"]
    np.testing.assert_allclose(found, by_kernel, atol=5e-5)
    assert not np.asarray(found)[:, 59:].any()
    # A kernel that is not learnt takes another path to the same gradient.
    frozen = jax.jit(jax.grad(lambda h: total(params, h), has_aux=True))
    slope, logps = frozen(hidden)
    np.testing.assert_allclose(logps, out, atol=2e-5)
    np.testing.assert_allclose(slope, by_hidden, atol=2e-5)


def test_gradients_by_finite_differences():
    cfg, params, hidden, batch, _ = setting(False)

    @jax.jit
    def total(hidden, kernel):
        tree = params | {"heads": {"text": {"kernel": kernel}}}
        return heads.token_logps(tree, cfg, hidden, batch, chunk=40).sum() / 10

    jax.test_util.check_grads(
        total,
        (hidden, params["heads"]["text"]["kernel"]),
        order=1,
        modes=["rev"],
        eps=1e-2,
        atol=2e-2,
        rtol=2e-2,
    )


def test_unscored_tokens_are_zero_and_may_break_the_grammar():
    cfg, params, hidden, batch, _ = setting(True)
    wrong = jnp.where(batch.scored, batch.tokens, 60)

    @jax.jit
    def total(params, batch):
        logps = heads.token_logps(params, cfg, hidden, batch, chunk=40)
        return logps.sum(), logps

    graded = jax.jit(jax.value_and_grad(total, has_aux=True))
    (one, logps), slope = graded(params, batch)
    (two, _), other = graded(params, batch.replace(tokens=wrong))
    assert np.isfinite(one) and one == two
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), slope, other))
    assert (np.asarray(logps)[~np.asarray(batch.scored)] == 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_text_alone_is_as_before(tied):
    cfg, params, hidden, batch, bounds = setting(tied, None)
    weights = np.ones(batch.tokens.shape)
    out, *_ = by_hand(cfg, params, hidden, batch, bounds, 1.0, weights)
    plain = heads.token_logps(params, cfg, hidden, batch, chunk=40)
    np.testing.assert_allclose(plain, out, atol=2e-5)
    all_text = dataclasses.replace(cfg, grammar=Grammar(cfg.vocab_size))
    same = heads.token_logps(params, all_text, hidden, batch, chunk=40)
    np.testing.assert_array_equal(np.asarray(same), np.asarray(plain))
