"""The exam: every algorithm file is found here and examined, without an edit.

What is examined: dataclasses in `alanything_jax/algorithms` that keep the contract, with
their defaults and with each function of their module that fits a field of functions.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alanything_jax import algorithms
from alanything_jax.algorithms.base import (
    CURRENT,
    TEACHER,
    TEACHER_IDS,
    Algorithm,
    Outputs,
)
from alanything_jax.algorithms.distill import Distill
from alanything_jax.algorithms.reward import Reward
from alanything_jax.algorithms.sft import SFT
from alanything_jax.models.params import flatten
from alanything_jax.ops.masked import divide
from alanything_jax.training import step
from tests import toys


def find():
    """Every algorithm of the package, by a readable name."""
    found = {}
    for info in pkgutil.iter_modules(algorithms.__path__):
        module = importlib.import_module(f"alanything_jax.algorithms.{info.name}")
        for kind in vars(module).values():
            mine = inspect.isclass(kind) and kind.__module__ == module.__name__
            if not (mine and dataclasses.is_dataclass(kind) and hasattr(kind, "roles")):
                continue
            found[f"{info.name}.{kind.__name__}"] = kind()
            found |= variants(module, info.name, kind)
    return found


def variants(module, name, kind):
    """The algorithm with each of its options turned on, one at a time."""
    out = {}
    for field in dataclasses.fields(kind):
        if callable(field.default):
            hints = list(inspect.signature(field.default).parameters)
            links = {
                f.__name__: f
                for f in vars(module).values()
                if inspect.isfunction(f)
                and list(inspect.signature(f).parameters) == hints
            }
        elif field.default is False:
            links = {"True": True}
        else:
            links = {"0.2": 0.2} if field.default == 0.0 else {}
        for label, value in links.items():
            changed = kind(**{field.name: value})
            out[f"{name}.{kind.__name__}({field.name}={label})"] = changed
    return out


FOUND = find()
# Each algorithm takes the exam in `make test`, each of its options in `make test-all`.
pytestmark = pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(made, id=name, marks=pytest.mark.slow if "(" in name else ())
        for name, made in FOUND.items()
    ],
)
ROLE = {"logps": "policy", "scores": "reward", "top": "policy"}
# Models are compiled for these, not for every algorithm.
KINDS = {"logps": SFT(), "scores": Reward(), "top": Distill()}
READER = {kind: toys.program(algorithm) for kind, algorithm in KINDS.items()}


def batches(algorithm, count=6, seed=0, rows=2, row_tokens=64):
    """A step's microbatches, stacked, with reference log-probs in them."""
    items = toys.groups(np.random.default_rng(seed), count, longest=7)
    names = [n for n in algorithm.numbers if n != "step_label"]
    packed, _ = toys.pack(items, rows, row_tokens, algorithm.couples, names, count)
    packed = [with_numbers(algorithm, batch, seed) for batch in packed]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *packed)


def with_numbers(algorithm, batch, seed=0):
    """Numbers of tokens that depend on the token alone, so that packing is free."""
    logps = -3.0 - 0.1 * jnp.sin(batch.tokens * 1.7 + seed)
    program = toys.program(algorithm)
    names = [f"{role}_logps" for role in program.frozen_roles]
    names += program.recorded.values()
    made = {name: jnp.where(batch.scored, logps, 0.0) for name in names}
    if "step_label" in algorithm.numbers:
        made["step_label"] = jnp.where(batch.scored, batch.tokens % 3 - 1.0, 0.0)
    if TEACHER in algorithm.roles:
        ids = batch.tokens[..., None] + jnp.arange(4) * 7
        made[TEACHER_IDS] = ids % toys.CONFIG.vocab_size
        top = jnp.sin(batch.tokens[..., None] + jnp.arange(5.0))
        made[f"{TEACHER}_top"] = jax.nn.log_softmax(top)
    return batch.replace(numbers=batch.numbers | made)


@functools.cache
def parameters(kind):
    flat = flatten(toys.parameters(score_head=kind == "scores"))
    return {f"{ROLE[kind]}/{path}": value for path, value in flat.items()}


def _read(kind, params, packed, dtype="float32"):
    program = dataclasses.replace(READER[kind], compute_dtype=dtype)
    return jax.lax.map(
        lambda batch: step.run_role(program, ROLE[kind], params, batch), packed
    )


def _pull(kind, params, packed, cotangent):
    (grads,) = jax.vjp(lambda p: _read(kind, p, packed), params)[1](cotangent)
    return grads


def trained(algorithm):
    """role -> parameters of its kind."""
    return {role: parameters(algorithm.roles[role]) for role in algorithm.trains}


def read_all(algorithm, params, packed, dtype="float32"):
    """Every trained role's outputs."""
    return {
        role: read(algorithm.roles[role], own, packed, dtype)
        for role, own in params.items()
    }


def _annotated(algorithm, packed, outputs):
    """What the loop hands to the loss: every role's outputs, and the step's numbers."""
    program = toys.program(algorithm)
    names = {role: f"{role}_logps" for role in program.frozen_roles} | program.recorded
    fixed = {
        role: Outputs(**{algorithm.roles[role]: packed.numbers[name]})
        for role, name in names.items()
        if role != TEACHER
    }
    if TEACHER in algorithm.roles:
        top, ids = packed.numbers[f"{TEACHER}_top"], packed.numbers[TEACHER_IDS]
        fixed[TEACHER] = Outputs(top=top, ids=ids)
    if CURRENT in algorithm.roles:
        fixed[CURRENT] = jax.lax.stop_gradient(outputs[algorithm.trains[0]])
    numbers = algorithm.annotate(packed, fixed)
    packed = packed.replace(numbers=packed.numbers | numbers)
    return packed, fixed | outputs


def _losses(algorithm, packed, outputs):
    return jax.vmap(algorithm.loss)(*_annotated(algorithm, packed, outputs))


def _totals(algorithm, packed):
    program = toys.program(algorithm)
    counts = jax.vmap(lambda batch: step.totals(program, batch))(packed)
    return jax.tree.map(jnp.sum, counts)


def _of_step(algorithm, packed, outputs):
    """Loss and metrics of a step, and the loss's gradient to the trained outputs."""

    def loss(outputs):
        terms, metrics = _losses(algorithm, packed, outputs)
        counts = _totals(algorithm, packed)
        shares = [
            t.weight[0] * divide(jnp.sum(t.total), counts[n]) for n, t in terms.items()
        ]
        return sum(shares), metrics

    return jax.value_and_grad(loss, has_aux=True)(outputs)


read = jax.jit(_read, static_argnums=(0, 3))
pull = jax.jit(_pull, static_argnums=0)
losses = jax.jit(_losses, static_argnums=0)
totals = jax.jit(_totals, static_argnums=0)
of_step = jax.jit(_of_step, static_argnums=0)


def step_gradients(algorithm, packed, params=None):
    """Gradients and loss of a whole step, over all its microbatches."""
    params = params or trained(algorithm)
    outputs = read_all(algorithm, params, packed)
    (loss, _), cotangent = of_step(algorithm, packed, outputs)
    return {
        role: pull(algorithm.roles[role], own, packed, cotangent[role])
        for role, own in params.items()
    }, float(loss)


def assert_close(one, other, atol=1e-5):
    """Equal, to float32's rounding beside the largest where that is above 1."""
    leaves = [*zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    scale = max(1.0, *(float(jnp.max(jnp.abs(a))) for a, _ in leaves))
    for a, b in leaves:
        np.testing.assert_allclose(a, b, atol=atol * scale, rtol=1e-4)


def test_keeps_the_contract(algorithm):
    assert isinstance(algorithm, Algorithm)
    assert set(algorithm.trains) <= set(algorithm.roles)
    assert "reference" not in algorithm.trains
    assert hash(algorithm) == hash(dataclasses.replace(algorithm))


def test_finite_under_jit_with_some_gradient(algorithm):
    grads, loss = step_gradients(algorithm, batches(algorithm))
    sizes = [float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads)]
    assert np.isfinite([loss, *sizes]).all() and max(sizes) > 0


def test_microbatches_equal_the_big_batch(algorithm):
    shape = {"rows": 1, "row_tokens": 24 if algorithm.couples else 16}
    few, many = batches(algorithm, rows=6), batches(algorithm, **shape)
    assert len(few.tokens) == 1 and len(many.tokens) > 3
    (big, loss), (small, same) = (step_gradients(algorithm, b) for b in (few, many))
    assert_close(big, small)
    assert abs(loss - same) < 1e-5


def test_padding_content_changes_nothing(algorithm):
    packed = batches(algorithm)
    noisy = packed.replace(tokens=jnp.where(packed.group == 0, 5, packed.tokens))
    assert not np.array_equal(noisy.tokens, packed.tokens)
    assert_close(
        step_gradients(algorithm, packed)[0], step_gradients(algorithm, noisy)[0]
    )


def test_all_masked_batch_gives_zero_gradients(algorithm):
    batch = batches(algorithm)
    empty = batch.replace(
        group=jnp.zeros_like(batch.group),
        source=jnp.full_like(batch.source, -1),
        response=jnp.full_like(batch.response, -1),
        table=jnp.full_like(batch.table, -1),
    )
    grads, loss = step_gradients(algorithm, empty)
    assert loss == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(grads))


def test_counts_depend_on_masks_only(algorithm):
    packed = batches(algorithm)
    values = jnp.sin(jnp.arange(packed.tokens.size, dtype=jnp.float32))
    values = values.reshape(packed.tokens.shape)
    given = {
        role: Outputs(values, values, values[..., None]) for role in algorithm.trains
    }
    terms, _ = losses(algorithm, packed, given)
    expected = totals(algorithm, packed)
    assert {n: float(jnp.sum(t.count)) for n, t in terms.items()} == {
        n: float(c) for n, c in expected.items()
    }


def test_swapping_responses_flips_the_margin(algorithm):
    packed = batches(algorithm)
    outputs = read_all(algorithm, trained(algorithm), packed)
    if "reward_margin" not in losses(algorithm, packed, outputs)[1]:
        pytest.skip("it has no chosen response, so there is nothing to swap")
    swapped = packed.replace(table=packed.table[..., ::-1])
    one, other = (
        float(jnp.sum(losses(algorithm, b, outputs)[1]["reward_margin"].total))
        for b in (packed, swapped)
    )
    assert abs(one) > 1e-4
    np.testing.assert_allclose(one, -other, rtol=1e-4, atol=1e-6)


def test_no_gradient_to_frozen_roles(algorithm):
    frozen = toys.program(algorithm).frozen_roles
    if not frozen:
        pytest.skip("every role of it trains")
    packed = batches(algorithm)
    outputs = read_all(algorithm, trained(algorithm), packed)
    kinds = {role: algorithm.roles[role] for role in frozen}
    fixed = {role: packed.numbers[f"{role}_{kind}"] for role, kind in kinds.items()}
    packed, roles = jax.jit(_annotated, static_argnums=0)(algorithm, packed, outputs)

    def loss(fixed):
        given = {r: Outputs(**{kind: fixed[r]}) for r, kind in kinds.items()}
        given = roles | given
        terms, _ = jax.vmap(algorithm.loss)(packed, given)
        return sum(jnp.sum(t.total) for t in terms.values())

    for gradient in jax.jit(jax.grad(loss))(fixed).values():
        assert float(jnp.max(jnp.abs(gradient))) == 0.0


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(algorithm):
    packed, params = batches(algorithm), trained(algorithm)
    exact, rough = (
        float(of_step(algorithm, packed, read_all(algorithm, params, packed, d))[0][0])
        for d in ("float32", "bfloat16")
    )
    assert exact != rough
    assert abs(rough - exact) < 0.05 * max(1.0, abs(exact))


def test_loss_falls_on_a_toy_problem(algorithm):
    packed = batches(algorithm, count=3)
    params = trained(algorithm)
    optimizer = optax.adam(3e-3)
    update = jax.jit(optimizer.update)
    state, losses = optimizer.init(params), []
    for _ in range(12):
        grads, loss = step_gradients(algorithm, packed, params)
        losses.append(loss)
        updates, state = update(grads, state)
        params = optax.apply_updates(params, updates)
    assert losses[-1] < losses[0]
