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
from alanything_jax.algorithms.base import Algorithm, Outputs
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
            links = [
                f
                for f in vars(module).values()
                if inspect.isfunction(f)
                and f.__module__ == module.__name__
                and list(inspect.signature(f).parameters) == hints
            ]
            for link in links:
                out[f"{name}.{kind.__name__}({field.name}={link.__name__})"] = kind(
                    **{field.name: link}
                )
        elif field.default == 0.0:
            out[f"{name}.{kind.__name__}({field.name}=0.2)"] = kind(**{field.name: 0.2})
    return out


FOUND = find()
pytestmark = pytest.mark.parametrize("algorithm", FOUND.values(), ids=FOUND.keys())


def batches(algorithm, count=6, seed=0, rows=2, row_tokens=64):
    """A step's microbatches with reference log-probs in them."""
    items = toys.groups(np.random.default_rng(seed), count, longest=7)
    packed, _ = toys.pack(items, rows, row_tokens, capacity=count)
    return [with_reference(algorithm, batch, seed) for batch in packed]


def with_reference(algorithm, batch, seed=0):
    """Reference log-probs that depend on the token alone, so that packing is free."""
    logps = -3.0 - 0.1 * jnp.sin(batch.tokens * 1.7 + seed)
    fixed = {
        f"{role}_logps": jnp.where(batch.scored, logps, 0.0)
        for role in algorithm.roles
        if role not in algorithm.trains
    }
    return batch.replace(numbers=batch.numbers | fixed)


@functools.partial(jax.jit, static_argnums=0)
def annotated(program, batch):
    fixed = step.frozen_outputs(program, {}, batch)
    stacked = jax.tree.map(lambda x: x[None], (batch, fixed))
    numbers = program.algorithm.annotate(*stacked)
    numbers = {n: x[0] for n, x in numbers.items()}
    return batch.replace(numbers=batch.numbers | numbers), fixed


@functools.cache
def parameters(algorithm):
    scoring = "scores" in algorithm.roles.values()
    role = algorithm.trains[0]
    from alanything_jax.models.params import flatten

    flat = flatten(toys.parameters(score_head=scoring))
    return {f"{role}/{path}": value for path, value in flat.items()}


# Jitted once for all tests: what is static is hashable.
totals = jax.jit(step.totals, static_argnums=0)
gradients = jax.jit(step.gradients, static_argnums=0)
run_role = jax.jit(step.run_role, static_argnums=(0, 1))
microbatch_loss = jax.jit(step.microbatch_loss, static_argnums=0)


def step_gradients(algorithm, packed, params=None):
    """Gradients and sums of a whole step, over all its microbatches."""
    program = toys.program(algorithm)
    counts = [totals(program, batch) for batch in packed]
    counts = jax.tree.map(lambda *c: sum(c), *counts)
    params = params or parameters(algorithm)
    total = None
    for batch in packed:
        batch, fixed = annotated(program, batch)
        new = gradients(program, params, {}, batch, fixed, counts)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
    return total


def assert_close(one, other, atol=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


def test_keeps_the_contract(algorithm):
    assert isinstance(algorithm, Algorithm)
    assert set(algorithm.trains) <= set(algorithm.roles)
    assert "reference" not in algorithm.trains
    assert hash(algorithm) == hash(dataclasses.replace(algorithm))


def test_finite_under_jit_with_some_gradient(algorithm):
    grads, sums = step_gradients(algorithm, batches(algorithm))
    assert np.isfinite(float(sums["loss"].total))
    sizes = [float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads)]
    assert all(np.isfinite(sizes)) and max(sizes) > 0


def test_microbatches_equal_the_big_batch(algorithm):
    big = step_gradients(algorithm, batches(algorithm, rows=6))
    small = step_gradients(algorithm, batches(algorithm, rows=1, row_tokens=24))
    assert len(batches(algorithm, rows=1, row_tokens=24)) > 1
    assert_close(big[0], small[0])
    assert abs(float(big[1]["loss"].total - small[1]["loss"].total)) < 1e-5


def test_padding_content_changes_nothing(algorithm):
    packed = batches(algorithm)
    noisy = [b.replace(tokens=jnp.where(b.group == 0, 5, b.tokens)) for b in packed]
    assert_close(
        step_gradients(algorithm, packed)[0], step_gradients(algorithm, noisy)[0]
    )


def test_all_masked_batch_gives_zero_gradients(algorithm):
    (batch, *_) = batches(algorithm)
    empty = batch.replace(
        group=jnp.zeros_like(batch.group),
        source=jnp.full_like(batch.source, -1),
        response=jnp.full_like(batch.response, -1),
        table=jnp.full_like(batch.table, -1),
    )
    grads, sums = step_gradients(algorithm, [empty])
    assert float(sums["loss"].total) == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(grads))


def test_counts_depend_on_masks_only(algorithm):
    (batch, *_) = batches(algorithm)
    program = toys.program(algorithm)
    numbers, fixed = annotated(program, batch)
    values = jnp.sin(jnp.arange(batch.tokens.size, dtype=jnp.float32)).reshape(
        batch.tokens.shape
    )
    outputs = fixed | {algorithm.trains[0]: Outputs(values, values)}
    terms, _ = algorithm.loss(numbers, outputs)
    expected = totals(program, batch)
    assert {n: float(t.count) for n, t in terms.items()} == {
        n: float(c) for n, c in expected.items()
    }


def test_swapping_responses_flips_the_margin(algorithm):
    if algorithm.min_responses < 2:
        pytest.skip("it does not compare responses, so there is nothing to swap")
    (batch, *_) = batches(algorithm)
    program = toys.program(algorithm)
    batch, fixed = annotated(program, batch)
    params, role = parameters(algorithm), algorithm.trains[0]
    outputs = fixed | {role: run_role(program, role, params, batch)}
    swapped = batch.replace(table=batch.table[:, ::-1])
    margins = [
        algorithm.loss(b, outputs)[1]["reward_margin"].total for b in (batch, swapped)
    ]
    assert abs(float(margins[0])) > 1e-4
    np.testing.assert_allclose(margins[0], -margins[1], rtol=1e-4, atol=1e-6)


def test_no_gradient_to_frozen_roles(algorithm):
    if set(algorithm.roles) == set(algorithm.trains):
        pytest.skip("every role of it trains")
    program = dataclasses.replace(toys.program(algorithm), reference="live")
    (batch, *_) = batches(algorithm)
    role = algorithm.trains[0]
    params = parameters(algorithm)
    frozen = {f"reference/{p.split('/', 1)[1]}": v for p, v in params.items()}

    def loss(frozen):
        fixed = step.frozen_outputs(program, frozen | params, batch)
        fixed = jax.lax.stop_gradient(fixed)
        counts = step.totals(program, batch)
        stacked = jax.tree.map(lambda x: x[None], (batch, fixed))
        numbers = {n: x[0] for n, x in algorithm.annotate(*stacked).items()}
        full = batch.replace(numbers=batch.numbers | numbers)
        return step.microbatch_loss(program, params, frozen, full, fixed, counts)[0]

    grads = jax.jit(jax.grad(loss))(frozen)
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(grads))
    assert role in algorithm.roles


def test_bfloat16_is_close_to_float32(algorithm):
    packed = batches(algorithm)
    exact = step_gradients(algorithm, packed)[1]["loss"].total
    program = dataclasses.replace(toys.program(algorithm), compute_dtype="bfloat16")
    counts = jax.tree.map(lambda *c: sum(c), *[totals(program, b) for b in packed])
    rough = 0.0
    for batch in packed:
        batch, fixed = annotated(program, batch)
        rough += microbatch_loss(
            program, parameters(algorithm), {}, batch, fixed, counts
        )[0]
    assert abs(float(rough - exact)) < 0.05 * max(1.0, abs(float(exact)))


def test_loss_falls_on_a_toy_problem(algorithm):
    packed = batches(algorithm, count=3)
    params = parameters(algorithm)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    losses = []
    for _ in range(12):
        grads, sums = step_gradients(algorithm, packed, params)
        losses.append(float(sums["loss"].total))
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
    assert losses[-1] < losses[0]
