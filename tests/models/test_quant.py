"""Kernels in integers: the NF4 code book, what is kept, what a layer makes of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.models import decoder, layers, lora, quant
from alanything_jax.models.params import ParamSpec, abstract, count, flatten, init
from alanything_jax.sharding import mesh as meshes
from alanything_jax.sharding import rules
from tests import toys

# Appendix E of arXiv:2305.14314.
PUBLISHED = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
-0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534
0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434
0.5626170039176941 0.7229568362236023 1.0"""
RNG = np.random.default_rng(0)


def by_hand(w, kind):
    """A kernel [i, o] rounded by numpy, an output at a time."""
    if kind == "int8":
        step = np.abs(w).max(0) / 127
        return np.rint(w / step) * step
    codes, out = np.array(PUBLISHED.split(), float), np.empty_like(w)
    for o in range(w.shape[1]):
        for i in range(0, len(w), 64):
            block = w[i : i + 64, o]
            top = np.abs(block).max()
            near = np.abs(block[:, None] / top - codes).argmin(1)
            out[i : i + 64, o] = codes[near] * top
    return out


def test_the_code_book_is_the_published_one():
    np.testing.assert_allclose(quant.NF4, np.array(PUBLISHED.split(), float), atol=3e-7)


@pytest.mark.parametrize("kind", quant.KINDS)
@pytest.mark.parametrize(
    "path,shape,axes",
    [
        ("layers/attn/q/kernel", (2, 128, 3, 5), ("layers", "embed", "heads", None)),
        ("layers/attn/o/kernel", (2, 3, 64, 5), ("layers", "heads", None, "embed")),
        ("layers/mlp/up/kernel", (2, 4, 64, 6), ("layers", "expert", "embed", "mlp")),
    ],
)
def test_kernels_by_hand(kind, path, shape, axes):
    spec = ParamSpec(shape, axes)
    value = RNG.normal(size=shape).astype(np.float32)
    kept = quant.stored(path, jnp.asarray(value), spec, kind)
    declared = flatten(quant.specs({path: spec}, kind))
    assert {p: (x.shape, str(x.dtype)) for p, x in kept.items()} == {
        p: (s.shape, s.dtype) for p, s in declared.items()
    }
    bits = 8 * kept[f"{path}_q"].nbytes / value.size
    assert bits == {"int8": 8, "nf4": 4}[kind]
    made = np.asarray(quant.floats(kept[f"{path}_q"][1], kept[f"{path}_scale"][1]))
    lead, fan_in = ((4,), 64) if "expert" in axes else ((), -1)
    if path.endswith("o/kernel"):
        fan_in = 3 * 64
    elif not lead:
        fan_in = 128
    for at in np.ndindex(*lead):
        want = by_hand(value[1][at].reshape(fan_in, -1), kind)
        np.testing.assert_allclose(made[at].reshape(fan_in, -1), want, atol=2e-6)


@pytest.mark.parametrize("kind", quant.KINDS)
def test_zeros_stay_zero(kind):
    spec = ParamSpec((1, 64, 3), ("layers", "embed", "mlp"))
    kept = quant.stored("layers/mlp/up/kernel", jnp.zeros(spec.shape), spec, kind)
    assert not np.any(quant.floats(*(x[0] for x in kept.values())))


def test_bad_requests_say_what_is_allowed():
    spec = ParamSpec((1, 36, 3), ("layers", "embed", "mlp"))
    tree = {"layers": {"mlp": {"up": {"kernel": spec}}}}
    with pytest.raises(ValueError, match="choose one of .*int8.*nf4"):
        quant.specs(tree, "fp4")
    with pytest.raises(ValueError, match='has 36 inputs.*Use quantize="int8"'):
        quant.specs(tree, "nf4")


@pytest.mark.parametrize(
    "family,kind",
    [("llama", "int8"), ("qwen3_moe", "nf4"), ("gemma3", "nf4"), ("qwen3_vl", "int8")],
)
def test_what_is_kept_of_a_model(family, kind):
    """Kernels of the decoder's layers alone, as declared; exported they are floats."""
    bundle = load_model(ModelSource(f"tiny:{family}", quantize=kind))
    flat, specs = flatten(bundle.params), flatten(bundle.model.specs())
    want = flatten(abstract(bundle.model.specs(), jnp.float32))
    assert {p: (x.shape, x.dtype) for p, x in flat.items()} == {
        p: (x.shape, x.dtype) for p, x in want.items()
    }
    plain = load_model(ModelSource(f"tiny:{family}"))
    found = {p.removesuffix("_q") for p in specs if p.endswith("_q")}
    assert found == {
        p
        for p in flatten(plain.params)
        if p.startswith("layers/") and p.endswith("/kernel") and "router" not in p
    }
    back, base = flatten(quant.dequantize(bundle.params)), flatten(plain.params)
    for path, value in base.items():
        limit = np.abs(value).max() * {"int8": 0.5 / 127, "nf4": 0.16}[kind]
        error = np.abs(back[path] - value).max()
        assert back[path].dtype == value.dtype
        assert 0 < error <= 1.01 * limit if path in found else error == 0
    small = lora.lora_specs(bundle.model.specs(), lora.Lora(4, dora=True))
    assert small == lora.lora_specs(plain.model.specs(), lora.Lora(4, dora=True))


def stacked(kind, size=256, depth=6, mixed=False, remat="none", dora=False):
    """Gradient of an adapter through a scan of `depth` wide layers, and its arguments."""
    cfg = toys.CONFIG.__class__(
        **vars(toys.CONFIG) | {"num_layers": depth, "width": size, "ffw_width": size}
    )
    specs = decoder.param_specs(cfg)
    params = quant.quantize(init(specs, jax.random.key(0)), specs, kind)
    adapter = init(lora.lora_specs(specs, lora.Lora(2, dora=dora)), jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.05, adapter)
    (batch, *_), _ = toys.pack(toys.groups(RNG, 2), rows=1)

    def loss(adapter, params):
        out = decoder.hidden(
            params, cfg, batch, lora=adapter, mixed=mixed, remat=remat, lora_scale=0.5
        )
        return jnp.sum(out**2)

    return jax.jit(jax.grad(loss)), adapter, params


def largest(compiled, kinds):
    """Values in the largest array of these dtypes in a program."""
    found = re.findall(rf"(?:{kinds})\[([\d,]+)\]", compiled.as_text())
    return max(np.prod([int(n) for n in dims.split(",")]) for dims in found)


@pytest.mark.parametrize(
    "kind,remat,dora",
    [("int8", "none", True), pytest.param("nf4", "dots", True, marks=pytest.mark.slow)],
)
def test_no_floats_of_all_layers_are_made(kind, remat, dora):
    grad, adapter, params = stacked(kind, remat=remat, dora=dora)
    compiled = grad.lower(adapter, params).compile()
    assert largest(compiled, "u8|s8") == 6 * 256 * 256 / {"int8": 1, "nf4": 2}[kind]
    # Activations of all layers are floats; of kernels only one layer's are.
    assert largest(compiled, "f32|bf16|f16") < 6 * 256 * 256 / 2


@pytest.mark.slow
def test_floats_of_all_layers_would_be_seen():
    """The test above can fail: without `product`'s checkpoint they pile up."""
    grad, adapter, params = stacked("int8", depth=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "checkpoint", lambda f, **_: f)
        compiled = grad.lower(adapter, params).compile()
    assert largest(compiled, "f32") >= 3 * 256 * 256


@pytest.mark.parametrize(
    "kind,mixed", [("nf4", True), pytest.param("int8", False, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_gradients_are_those_over_the_dequantised_base(kind, mixed):
    grad, adapter, params = stacked(kind, size=64, depth=2, mixed=mixed, dora=True)
    ours, plain = grad(adapter, params), grad(adapter, quant.dequantize(params))
    assert all(np.any(x) for x in jax.tree.leaves(ours))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-3), ours, plain
    )


def test_bfloat16_leaves_the_scales_alone():
    spec = ParamSpec((1, 64, 3), ("layers", "embed", "mlp"))
    value = jnp.asarray(RNG.normal(size=spec.shape), jnp.bfloat16)
    kept = quant.stored("layers/mlp/up/kernel", value, spec, "nf4")
    cast = flatten(quant.cast({"norm": jnp.ones(3)} | kept, jnp.bfloat16))
    assert [str(x.dtype) for x in cast.values()] == ["bfloat16", "uint8", "float32"]
    p = {path.rsplit("/", 1)[1]: x[0] for path, x in kept.items()}
    out = layers.dense(jnp.ones((3, 64), jnp.bfloat16), p, None, 1, 1.0)
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", quant.KINDS)
def test_a_directory_is_read_into_integers(kind, tmp_path):
    """Leaf by leaf, on a mesh as on one device."""
    plain = load_model(ModelSource("tiny:llama"))
    hub.save(plain, tmp_path / "model")
    want = flatten(quant.quantize(plain.params, plain.model.specs(), kind))
    mesh, table = meshes.make(("fsdp=4", "tensor=2")), rules.FSDP_TENSOR
    source = ModelSource(str(tmp_path / "model"), quantize=kind)
    for place in (None, lambda s: rules.named(mesh, s.shape, s.axes, table)):
        found = load_model(source, place=place)
        assert found.model.quantize == kind
        for path, value in flatten(found.params).items():
            np.testing.assert_array_equal(value, want[path], err_msg=path)


@pytest.mark.parametrize("kind", quant.KINDS)
def test_decoding_and_counting_are_as_with_floats(kind):
    plain = load_model(ModelSource("tiny:llama"))
    cfg, tokens = plain.model.config, np.arange(12).reshape(2, 6)
    made = quant.quantize(plain.params, plain.model.specs(), kind)
    assert sum(quant.sizes(flatten(made)).values()) == count(plain.params)
    cache = decoder.init_cache(cfg, 2, 8)
    step = jax.jit(lambda params: decoder.step(params, cfg, tokens, cache)[0])
    np.testing.assert_allclose(step(made), step(quant.dequantize(made)), atol=1e-5)
