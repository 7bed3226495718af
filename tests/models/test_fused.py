"""The `cudnn` backend: against the reference by XLA's program; the call, without a card."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax import experiment as recipes
from alanything_jax.models import attention, fused
from tests import toys

T, HEADS, KEY_HEADS, WIDTH = 48, 4, 2, 16


def packed(spans, seed=0):
    """The ids of two random packed rows, the last of them half padding."""
    rng = np.random.default_rng(seed)
    (batch,), _ = toys.pack(toys.groups(rng, 4), rows=2, row_tokens=T)
    rows = attention.rows_of(batch)
    # A tail that sees nothing, whatever was packed there.
    rows = rows.replace(group=rows.group.at[1, T // 2 :].set(0))
    if spans:
        early = (rows.branch == 0) & (rows.index < 3) & (rows.group > 0)
        rows = rows.replace(span=jnp.where(early, rows.group, 0))
    return rows


def values(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), 4)
    heads = (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    return [
        jax.random.normal(key, (2, T, n, WIDTH), dtype) for key, n in zip(keys, heads)
    ]


def run(backend, rows, window, arrays):
    """Result, and gradients of q, k and v."""

    @jax.jit
    def value(q, k, v, weight):
        out = attention.attend(q, k, v, attention.plan(rows, window, backend, 16))
        return jnp.sum(out * weight), out

    grads, out = jax.grad(value, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return out, *grads


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("spans", [False, True])
def test_equals_dense_and_padding_gives_zero(spans, window, monkeypatch):
    monkeypatch.setattr(fused, "IMPLEMENTATION", "xla")
    rows, arrays = packed(spans), values()
    ours, expected = (run(b, rows, window, arrays) for b in ("cudnn", "dense"))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    padding = np.asarray(rows.group == 0)
    assert padding.sum() >= T // 2
    # Nothing of padding reaches a result or a gradient, not even no number.
    wild = [jnp.where(padding[..., None, None], 1e4, x) for x in arrays]
    for a, b in zip(run("cudnn", rows, window, wild), ours, strict=True):
        assert np.all(np.asarray(a)[padding] == 0)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cudnn_is_handed_the_mask_forward_and_backward(dtype, monkeypatch):
    """Lowered for CUDA on this machine: what the card would be asked, not its answer."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(cudnn, lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows = packed(spans=True)

    def value(q, k, v):
        out = attention.attend(q, k, v, attention.plan(rows, 3, "cudnn", 16))
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(value, argnums=(0, 1, 2))).trace(*values(dtype)[:3])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    short = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[dtype]
    for name in (
        "__cudnn$fmhaScaleBiasSoftmax(",
        "__cudnn$fmhaScaleBiasSoftmaxBackward(",
    ):
        (line,) = [line for line in text.splitlines() if name in line]
        for shape in ("2x48x4x16", "2x48x2x16", "2x1x48x48"):
            assert f"tensor<{shape}x{short}>" in line


def test_flash_is_cudnns_kernel_on_a_card(monkeypatch):
    """As recipes for TPUs ask for it; the TPU's kernel would be interpreted there."""
    rows = packed(spans=False)
    assert not isinstance(attention.plan(rows, None, "flash", 16), fused.Plan)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert isinstance(attention.plan(rows, None, "flash", 16), fused.Plan)


def test_no_card_and_wide_numbers_are_said(monkeypatch):
    rows = packed(spans=False)
    with pytest.raises(
        ValueError, match="NVIDIA cards; JAX's devices here are of 'cpu'"
    ):
        attention.plan(rows, None, "cudnn", 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    planned = attention.plan(rows, None, "cudnn", 16)
    with pytest.raises(
        ValueError, match="bfloat16 or float16, not float32.*compute_dtype"
    ):
        attention.attend(*values()[:3], planned)


def test_tiny_runs_where_no_card_is():
    path = Path(__file__).parents[2] / "configs" / "dpo_smollm2.py"
    recipe = recipes.load(path)
    compute = dataclasses.replace(recipe.compute, attention="cudnn")
    small = recipes.tiny(dataclasses.replace(recipe, compute=compute))
    assert small.compute.attention == "blockwise"
