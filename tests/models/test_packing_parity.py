"""Packed equals unpacked: log-probs, rewards, losses and gradients (DESIGN 1)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax.data import packing
from alanything_jax.models import attention, decoder, fused, heads
from alanything_jax.models.inputs import plain_batch
from alanything_jax.ops import masked
from tests import toys


@pytest.fixture(autouse=True, scope="module")
def no_card_needed():
    """The `cudnn` backend by XLA's own program, which takes float32 too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "IMPLEMENTATION", "xla")
        yield


@functools.partial(jax.jit, static_argnames=("config", "backend"))
def outputs(params, batch, config=toys.CONFIG, backend="dense"):
    hidden = decoder.hidden(params, config, batch, backend=backend, block=16)
    return (
        heads.token_logps(params, config, hidden, batch, chunk=8),
        heads.scores(params, hidden) if "score" in params.get("heads", {}) else None,
    )


def parameters():
    return toys.parameters(score_head=True)


def per_response(params, items, backend="dense", **layout):
    """(group, branch) -> (per-token log-probs, reward), however the items are packed."""
    found = {}
    batches, planned = toys.pack(items, **layout)
    for batch, rows in zip(batches, planned, strict=True):
        logps, scores = outputs(params, batch, backend=backend)
        rewards = masked.response_last(scores, batch)
        table, slots = np.asarray(batch.table), packing.slots(rows)
        for (g, b), tokens in packing.take(items, rows, np.asarray(logps)).items():
            found[g, b] = (tokens, float(rewards[table[slots[g], b]]))
    return found


@jax.jit
def plain(params, batch):
    hidden = decoder.hidden(params, toys.CONFIG, batch)
    logits = heads.logits(params, toys.CONFIG, hidden)
    return jax.nn.log_softmax(logits[0], axis=-1), heads.scores(params, hidden)[0]


def alone(params, item, branch, length=24):
    """The plain causal model on prompt + one response, padded on the right."""
    tokens = np.concatenate([item.prompt, item.branches[branch].tokens])
    padded = np.pad(tokens, (0, length - len(tokens)))[None]
    real = (np.arange(length) < len(tokens)).astype(np.int32)[None]
    logps, scores = map(np.asarray, plain(params, plain_batch(padded, real)))
    start = len(item.prompt)
    picked = logps[np.arange(start - 1, len(tokens) - 1), tokens[start:]]
    scored = item.branches[branch].scored
    return np.where(scored, picked, 0.0), scores[start + np.flatnonzero(scored)[-1]]


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 5),
    responses=st.integers(1, 3),
    gaps=st.booleans(),
    backend=st.sampled_from(attention.BACKENDS),
)
def test_packed_equals_plain_causal_model(seed, count, responses, gaps, backend):
    rng = np.random.default_rng(seed)
    items = toys.groups(rng, count, responses, gaps)
    params = parameters()
    layout = dict(rows=2, row_tokens=48, capacity=5, responses=3)
    packed = per_response(params, items, backend=backend, **layout)
    assert len(packed) == count * responses
    for (g, b), (logps, reward) in packed.items():
        expected, score = alone(params, items[g], b)
        np.testing.assert_allclose(logps, expected, atol=1e-5)
        assert abs(reward - score) < 1e-5


def loss(params, batch):
    """Any smooth function of all log-probs and rewards."""
    logps, scores = outputs(params, batch)
    sums = masked.response_sum(logps, batch)
    return jnp.sum(jnp.tanh(sums / 10)) + jnp.sum(
        jnp.sin(masked.response_last(scores, batch))
    )


value_and_grad = jax.jit(jax.value_and_grad(loss))


def total_gradient(params, items, **layout):
    batches, _ = toys.pack(items, **layout)
    values, grads = zip(*[value_and_grad(params, b) for b in batches], strict=True)
    return sum(values), jax.tree.map(lambda *g: sum(g), *grads)


def assert_same(one, other):
    assert abs(one[0] - other[0]) < 1e-5
    for a, b in zip(*map(jax.tree.leaves, (one[1], other[1])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_gradients_do_not_depend_on_packing():
    items = toys.groups(np.random.default_rng(3), 6)
    params = parameters()
    together = total_gradient(params, items, rows=2, row_tokens=64)
    apart = total_gradient(params, items, rows=1, row_tokens=27)
    assert_same(together, apart)


@pytest.mark.optimised
def test_group_split_over_rows_equals_the_unsplit_one():
    rng = np.random.default_rng(5)
    items = [toys.group(rng, 0, prompt=6, sizes=(7, 8, 9))]
    params = parameters()
    whole = total_gradient(params, items, rows=3, row_tokens=40)
    batches, planned = toys.pack(items, rows=3, row_tokens=16)
    assert [len(rows) for rows in planned] == [3]
    assert_same(whole, total_gradient(params, items, rows=3, row_tokens=16))


def test_padding_content_and_neighbours_change_nothing():
    rng = np.random.default_rng(7)
    items, params = toys.groups(rng, 3), parameters()
    (batch,), _ = toys.pack(items, rows=1, row_tokens=64)
    padded = batch.replace(
        tokens=jnp.where(batch.group == 0, 17, batch.tokens),
        position=jnp.where(batch.group[:, None] == 0, 99, batch.position),
        index=jnp.where(batch.group == 0, 3, batch.index),
    )
    value, grads = value_and_grad(params, batch)
    assert_same((value, grads), value_and_grad(params, padded))
    first = batch.group == 1
    other = batch.replace(tokens=jnp.where(first, batch.tokens, 17))
    mine, theirs = (outputs(params, b)[0] for b in (batch, other))
    np.testing.assert_allclose(
        jnp.where(first, mine, 0), jnp.where(first, theirs, 0), atol=1e-6
    )


@pytest.mark.parametrize("backend", attention.BACKENDS)
def test_place_in_the_row_means_nothing(backend):
    rng = np.random.default_rng(11)
    items, params = toys.groups(rng, 3), parameters()
    (batch,), _ = toys.pack(items, rows=1, row_tokens=64)
    order = rng.permutation(64)
    place = np.argsort(order)
    source = np.asarray(batch.source)[:, order]
    moved = batch.replace(
        **{
            name: getattr(batch, name)[..., order]
            for name in ("tokens", "group", "branch", "index", "position", "response")
        },
        source=jnp.asarray(np.where(source >= 0, place[source], -1)),
    )
    before, after = (outputs(params, b, backend=backend)[0] for b in (batch, moved))
    np.testing.assert_allclose(
        np.asarray(after), np.asarray(before)[:, order], atol=1e-5
    )


@pytest.mark.parametrize(
    "window, spans",
    # Both, neither; the others, too, in `make test-all`.
    [
        (None, False),
        (3, True),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param(3, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("backend", attention.BACKENDS[1:])
def test_backend_equals_dense(backend, window, spans):
    """Forward and backward on random packed rows, with two-way spans and windows."""
    config = toys.CONFIG
    if window:
        config = dataclasses.replace(
            config, sliding_window=3, window_layers=(True, False)
        )
    params = toys.parameters(config, score_head=True)
    (batch,), _ = toys.pack(
        toys.groups(np.random.default_rng(13), 5), rows=2, row_tokens=64
    )
    if spans:
        early = (batch.branch == 0) & (batch.index < 3) & (batch.group > 0)
        batch = batch.replace(span=jnp.where(early, batch.group, 0))

    def value(params, backend):
        return jnp.sum(jnp.sin(outputs(params, batch, config, backend)[0]))

    one, other = (jax.value_and_grad(value)(params, b) for b in ("dense", backend))
    assert_same(one, other)
    if spans:
        plain = batch.replace(span=jnp.zeros_like(batch.span))
        base = jnp.sum(jnp.sin(outputs(params, plain, config)[0]))
        assert abs(base - one[0]) > 1e-3


def test_visible_rule_by_hand():
    """prompt p0 p1, responses a and b of two tokens each, then padding."""
    rows = attention.Rows(
        group=jnp.array([[1, 1, 1, 1, 1, 1, 0]]),
        branch=jnp.array([[0, 0, 1, 1, 2, 2, 0]]),
        index=jnp.array([[0, 1, 2, 3, 2, 3, 0]]),
        span=jnp.zeros((1, 7), jnp.int32),
    )
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0],
            [1, 1, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    np.testing.assert_array_equal(attention.visible(rows, rows)[0], expected)
    window = attention.visible(rows, rows, 2)[0]
    np.testing.assert_array_equal(window[3], [0, 0, 1, 1, 0, 0, 0])


def test_empty_batch_gives_zero_and_finite_gradients():
    (batch,), _ = toys.pack(toys.groups(np.random.default_rng(1), 2), rows=2)
    empty = batch.replace(
        group=jnp.zeros_like(batch.group),
        source=jnp.full_like(batch.source, -1),
        response=jnp.full_like(batch.response, -1),
    )
    grads = jax.grad(loss)(parameters(), empty)
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(grads))
