"""A family as an `nnx.Module` and back: equal logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alanything_jax.hub.source import tiny_bundle
from alanything_jax.models import nnx_view
from alanything_jax.models.params import flatten


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3_moe", "llava")),
    ],
)
def test_equal_logits_and_gradients_and_back(family):
    bundle = tiny_bundle(family)
    inputs = bundle.model.inputs(input_ids=np.arange(12).reshape(2, 6) * 7 % 200)
    module = nnx_view.view(bundle.model, bundle.params)

    def loss(logits):
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 3])

    ours, grads = jax.jit(
        jax.value_and_grad(lambda p: loss(bundle.model.logits(p, inputs)))
    )(bundle.params)
    theirs, nnx_grads = nnx.jit(nnx.value_and_grad(lambda m: loss(m(inputs))))(module)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for path, value in flatten(grads).items():
        np.testing.assert_allclose(
            nnx_grads["weights"][path][...], value, atol=1e-6, err_msg=path
        )
    back = flatten(nnx_view.params_of(module))
    assert back.keys() == flatten(bundle.params).keys()
    for path, value in flatten(bundle.params).items():
        np.testing.assert_array_equal(back[path], value)


def test_an_nnx_optimizer_trains_it():
    bundle = tiny_bundle("llama")
    inputs = bundle.model.inputs(input_ids=np.arange(12)[None] * 5 % 200)
    module = nnx_view.view(bundle.model, bundle.params)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        def loss(m):
            return -jnp.mean(jax.nn.log_softmax(m(inputs))[..., 3])

        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    first, second = step(module, optimizer), step(module, optimizer)
    assert second < first
    path = "embed/text/table"
    trained = flatten(nnx_view.params_of(module))[path]
    assert not np.array_equal(trained, flatten(bundle.params)[path])
