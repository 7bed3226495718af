"""FLOPs: by hand, and against the compiler's own count of an unrolled program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.models import attention
from alanything_jax.models.config import MoE
from alanything_jax.planning import flops
from tests import toys


def test_loops_are_multiplied_out_as_the_compiler_counts_them_unrolled():
    def layers(x, w, unroll):
        def body(x, w):
            return jnp.tanh(x @ w) @ w.T, None

        return jnp.sum(jax.lax.scan(body, x, w, unroll=unroll)[0])

    x, w = jnp.ones((16, 32)), jnp.ones((5, 32, 64))
    rolled = jax.make_jaxpr(jax.grad(lambda w: layers(x, w, 1)))(w).jaxpr
    compiled = jax.jit(jax.grad(lambda w: layers(x, w, 5))).lower(w).compile()
    # Two products forward, two for each backward; the first layer's input has none.
    products = 5 * 6
    assert flops.of_program(rolled) == products * 2 * 16 * 32 * 64
    assert compiled.cost_analysis()["flops"] <= 1.1 * flops.of_program(rolled)
    assert compiled.cost_analysis()["flops"] >= 0.8 * flops.of_program(rolled)


def test_products_by_groups_and_windows_count():
    """4 rows of 3 numbers, dealt out to 2 matrices of 3 x 5; and a convolution."""

    def routed(x, w):
        return jnp.sum(jax.lax.ragged_dot(x, w, jnp.array([1, 3])) ** 2)

    x, w = jnp.ones((4, 3)), jnp.ones((2, 3, 5))
    forward = jax.make_jaxpr(routed)(x, w).jaxpr
    assert flops.of_program(forward) == 2 * 4 * 3 * 5
    both = jax.make_jaxpr(jax.grad(routed, (0, 1)))(x, w).jaxpr
    assert flops.of_program(both) == 3 * 2 * 4 * 3 * 5
    signal, kernel = jnp.ones((1, 8, 10)), jnp.ones((6, 8, 3))
    seen = jax.make_jaxpr(lambda *a: jax.lax.conv(*a, (1,), "VALID"))(signal, kernel)
    assert flops.of_program(seen.jaxpr) == 2 * (8 * 6) * (8 * 3)


def test_what_one_device_does_counts_for_each_along_its_axes():
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("a", "b"), kinds, devices=jax.devices()[:8])
    spec = jax.sharding.PartitionSpec

    def product(x, w):
        return x @ w

    x, w = jnp.ones((16, 32)), jnp.ones((32, 8))
    for names, cut in ((("a", "b"), ("a", "b")), (("b",), ("b",))):
        local = jax.shard_map(
            product,
            mesh=mesh,
            in_specs=(spec(cut), spec()),
            out_specs=spec(cut),
            axis_names=set(names),
        )
        traced = jax.make_jaxpr(jax.jit(local))(x, w).jaxpr
        assert flops.of_program(traced) == 2 * 16 * 32 * 8


def test_a_loop_of_unknown_length_counts_as_often_as_is_said():
    def some(n, x):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    traced = jax.make_jaxpr(some)(3, jnp.ones((4, 4))).jaxpr
    assert flops.of_program(traced, 2.5) == 2.5 * 2 * 4**3


def test_long_rows_are_counted_a_block_at_a_time():
    """As by the whole mask at once."""
    rows = flops.example_row(200, 3)
    mask = np.asarray(attention.visible(rows, rows))[0]
    padded = np.pad(mask, (0, 56)).reshape(4, 64, 4, 64).any((1, 3))
    expected = int(mask.sum()), int(padded.sum()) * 64 * 64
    assert flops.visible_share(200, 3, 64) == expected
    assert flops.mean_visited(200, 3, 64) == padded.sum() / 4


def test_the_example_row_sees_what_the_rule_lets_it():
    """4 of prompt, two answers of 2: 10 pairs of prompt, (5 + 6) for each answer."""
    rows = flops.example_row(8, 2)
    np.testing.assert_array_equal(rows.branch[0], [0, 0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(rows.index[0], [0, 1, 2, 3, 4, 5, 4, 5])
    pairs, visited = flops.visible_share(8, 2, 2)
    assert pairs == int(attention.visible(rows, rows).sum()) == 10 + 2 * (5 + 6)
    # By blocks of two: three of the prompt, three of each answer.
    assert visited == (3 + 3 + 3) * 4


def test_a_models_flops_by_hand():
    cfg = toys.CONFIG
    scores = 4 * cfg.num_layers * cfg.num_heads * cfg.head_width * 7
    assert flops.of_model(cfg, 100, 10, 7, 2) == 2 * 100 * 10 + scores
    assert flops.of_model(cfg, 100, 10, 7, 6) == 6 * 100 * 10 + 3 * scores
    # Under an adapter nothing is saved in attention.
    assert flops.of_model(cfg, 100, 10, 7, 4, 6) == 4 * 100 * 10 + 3 * scores


def test_experts_and_encoders_count_by_what_passes_through_them():
    cfg = dataclasses.replace(toys.CONFIG, moe=MoE(8, 2, 4))
    sizes = {
        "embed/text/table": 100,
        "layers/mlp/gate/kernel": 800,
        "layers/mlp/router/kernel": 30,
        "encoders/vision/patch/kernel": 7,
    }
    assert flops.active(cfg, sizes) == 100 + 800 * 2 // 8 + 30
    assert flops.active(toys.CONFIG, sizes) == 930
    assert flops.of_encoder(sizes, "vision", 5, 6) == 6 * 5 * 7
