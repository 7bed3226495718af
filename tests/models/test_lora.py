"""Adapters against peft's own layers: outputs, gradients, where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from alanything_jax.models import layers, lora, quant
from alanything_jax.models.params import ParamSpec, flatten

IN, OUT, RANK = 64, 24, 4
SETTINGS = [{}, {"rank_stabilized": True}, {"dora": True}]
SETTINGS += [{"dora": True, "rank_stabilized": True}]


def arrays():
    """x [5, IN], kernel, bias, and an adapter off its start."""
    rng = np.random.default_rng(0)
    sizes = dict(x=(5, IN), kernel=(IN, OUT), bias=OUT, a=(RANK, IN), b=(RANK, OUT))
    sizes |= dict(m=OUT, seen=(5, OUT))
    return {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}


def theirs(kernel, given, settings):
    """peft's output, and gradients of sum(output * seen) for A, B and the magnitude."""
    linear = torch.nn.Linear(IN, OUT)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.array(kernel).T))
        linear.bias.copy_(torch.tensor(given["bias"]))
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=settings.alpha,
        use_rslora=settings.rank_stabilized,
        use_dora=settings.dora,
        target_modules=["0"],
    )
    layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    weights = {"a": layer.lora_A.default.weight, "b": layer.lora_B.default.weight}
    with torch.no_grad():
        weights["a"].copy_(torch.tensor(given["a"]))
        weights["b"].copy_(torch.tensor(given["b"].T))
        if settings.dora:
            weights["m"] = layer.lora_magnitude_vector.default.weight
            weights["m"] += torch.tensor(given["m"])
    out = layer(torch.tensor(given["x"]))
    (out * torch.tensor(given["seen"])).sum().backward()
    return out.detach().numpy(), {n: w.grad.numpy() for n, w in weights.items()}


@pytest.mark.parametrize("kind", ["", *quant.KINDS])
@pytest.mark.parametrize("changes", SETTINGS)
def test_a_layer_equals_peft(changes, kind):
    settings, given = lora.Lora(RANK, 12.0, **changes), arrays()
    spec = ParamSpec((1, IN, OUT), ("layers", "embed", "mlp"))
    path = "layers/mlp/up/kernel"
    kept = quant.stored(path, jnp.asarray(given["kernel"][None]), spec, kind)
    p = {name.rsplit("/", 1)[1]: x[0] for name, x in kept.items()}
    adapter = {n: given[n] for n in ("abm" if settings.dora else "ab")}

    @jax.jit
    def output(adapter):
        bias = {"bias": given["bias"]}
        return layers.dense(given["x"], p | bias, adapter, 1, settings.scale)

    def loss(adapter):
        return jnp.sum(output(adapter) * given["seen"])

    want, grads = theirs(quant.kernel(p), given, settings)
    np.testing.assert_allclose(output(adapter), want, atol=1e-4, rtol=1e-5)
    ours = jax.grad(loss)(adapter)
    assert ours.keys() == grads.keys()
    for name, grad in ours.items():
        want = grads[name].T if name == "b" else grads[name]
        np.testing.assert_allclose(grad, want, atol=2e-4, rtol=1e-5)
    merged = lora.merge(
        {"embed": {"text": {"table": given["x"]}}}
        | {"layers": {"mlp": {"up": {n: x[None] for n, x in p.items()}}}},
        {"layers": {"mlp": {"up": {n: x[None] for n, x in adapter.items()}}}},
        settings.scale,
    )
    matrix = flatten(merged)[path][0]
    want = given["x"] @ np.asarray(matrix) + given["bias"]
    np.testing.assert_allclose(output(adapter), want, atol=1e-4, rtol=1e-5)


def test_dora_starts_at_the_base_and_survives_an_output_without_weights():
    given = arrays()
    given["kernel"][:, 3] = 0
    start = {"a": given["a"], "b": 0 * given["b"], "m": 0 * given["m"]}
    p = {"kernel": jnp.asarray(given["kernel"])}
    want = layers.dense(given["x"], p, None, 1, 1.0)
    assert np.all(np.asarray(want)[:, 3] == 0)
    got = layers.dense(given["x"], p, start, 1, 2.0)
    np.testing.assert_array_equal(got, want)


def test_the_scale_by_hand():
    assert lora.Lora(16, 8.0).scale == 0.5
    assert lora.Lora(16, 8.0, rank_stabilized=True).scale == 2.0
