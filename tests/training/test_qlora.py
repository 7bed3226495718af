"""Adapters over a base in integers, through the real loop: resume, references, export."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.reward import Reward
from alanything_jax.algorithms.sft import SFT
from alanything_jax.models import decoder, heads, quant
from alanything_jax.models.lora import Lora
from alanything_jax.models.params import flatten, unflatten
from alanything_jax.planning import abstract
from alanything_jax.sharding import pjit
from alanything_jax.training import step
from alanything_jax.training.prepare import prepare
from alanything_jax.training.restore import load_run
from tests.training.test_loop import CONFIG, gradients, moved

PLAIN, DORA = Lora(4, 8.0), Lora(4, 8.0, rank_stabilized=True, dora=True)


def recipe(algorithm, quantize, adapter=PLAIN, reference="adapter_off", **model):
    base = recipes.tiny(recipes.load(CONFIG))
    change = dataclasses.replace
    return change(
        base,
        algorithm=algorithm,
        adapter=adapter,
        reference=reference,
        model=change(base.model, quantize=quantize, **model),
        data=change(base.data, heldout_groups=0),
        train=change(base.train, steps=2, checkpoint_every=1, tensorboard=False),
        compute=change(base.compute, row_tokens=128, remat="none"),
    )


def train(experiment, path):
    alanything_jax.train(experiment, path, say=lambda line: None)
    return (path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "name,algorithm,quantize,adapter",
    [
        pytest.param("sft", SFT(), "int8", PLAIN, marks=pytest.mark.slow),
        pytest.param("dpo", DPO(), "nf4", DORA, marks=pytest.mark.slow),
        ("reward", Reward(), "nf4", PLAIN),
        pytest.param("moe", DPO(), "int8", PLAIN, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_it_stopped(name, algorithm, quantize, adapter, tmp_path):
    model = {"path": "tiny:qwen3_moe"} if name == "moe" else {}
    experiment = recipe(algorithm, quantize, adapter, **model)
    whole = train(experiment, tmp_path)
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len(lines) == 2 and lines[1]["grad_norm"] > 0
    if "reward_margin" in lines[1]:
        assert lines[1]["reward_margin"] != 0
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert train(experiment, tmp_path) == whole
    restored = load_run(tmp_path)
    kinds = {str(x.dtype) for x in flatten(restored.bundle.params).values()}
    assert kinds == {"float32", {"int8": "int8", "nf4": "uint8"}[quantize]}
    assert {len(x) for x in jax.tree.leaves(restored.adapter)} == {2}
    names = {path.rsplit("/", 1)[1] for path in flatten(restored.adapter)}
    assert names == {"a", "b", *(["m"] if adapter.dora else [])}
    if name == "dpo":
        exported(tmp_path, restored)


def exported(run, restored):
    """Merged, the run computes what it did with adapter and base in integers."""
    alanything_jax.export(run, run / "merged")
    alanything_jax.export(run, run / "adapter", adapter=True)
    said = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert said["use_dora"] and said["base_model_name_or_path"] == "tiny:llama"
    other, cfg = hub.load(run / "merged"), restored.bundle.model.config
    inputs = other.model.inputs(input_ids=np.arange(24).reshape(2, 12) * 7)

    @jax.jit
    def ours(params, adapter):
        scale = restored.experiment.adapter.scale
        states = decoder.hidden(params, cfg, inputs, lora=adapter, lora_scale=scale)
        return heads.logits(params, cfg, states)

    want = ours(restored.bundle.params, restored.adapter)
    np.testing.assert_allclose(ours(other.params, None), want, atol=1e-4)
    assert np.abs(ours(restored.bundle.params, None) - want).max() > 1e-3


@pytest.mark.parametrize(
    "quantize", ["nf4", pytest.param("int8", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_reference_is_the_dequantised_base(quantize, tmp_path):
    """With the adapter off or cached, and not that of the weights as they were."""
    off, cached = (
        prepare(recipe(DPO(), quantize, DORA, how), tmp_path / "q", lambda line: None)
        for how in ("adapter_off", "cached")
    )
    (batch, *_), (other, *_) = (p.train[0].microbatches for p in (off, cached))
    batch = pjit.place_batch(batch, off.mesh, off.rules)
    logps = jax.jit(functools.partial(step.run_role, off.program, "reference"))
    with jax.set_mesh(off.mesh):
        ours = logps(off.frozen | moved(off), batch).logps
        floats = quant.dequantize(unflatten(off.frozen)["policy"])
        plain = logps(
            {f"policy/{p}": x for p, x in flatten(floats).items()}, batch
        ).logps
        exact = prepare(recipe(DPO(), ""), tmp_path / "q", lambda line: None)
        rough = logps(exact.frozen, batch).logps
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    made = abstract.abstract(recipe(DPO(), quantize, DORA), jax.devices()[:1])
    for found, planned in ((off.frozen, "frozen"), (off.trainable, "parameters")):
        assert {p: (x.shape, x.dtype) for p, x in found.items()} == {
            p: (x.shape, x.dtype) for p, x in made.live[planned].items()
        }
    scored = np.asarray(batch.source) >= 0
    kept = other.numbers["reference_logps"]
    np.testing.assert_allclose(np.where(scored, ours, 0), kept, atol=1e-5)
    assert np.abs(rough - plain)[scored].max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("quantize", quant.KINDS)
def test_one_device_equals_eight(quantize, tmp_path):
    base, rules = recipe(DPO(), quantize, DORA), "fsdp_tensor"
    mesh = ("fsdp=4", "tensor=2")
    compute = dataclasses.replace(base.compute, rows_per_microbatch=8, rules=rules)
    one, many = (
        gradients(
            dataclasses.replace(base, compute=dataclasses.replace(compute, mesh=where)),
            tmp_path,
            change=moved,
        )
        for where in ((), mesh)
    )
    held = many[2].frozen["policy/layers/mlp/up/kernel_q"]
    assert not held.sharding.is_fully_replicated
    for name in one[1]:
        assert abs(one[1][name] - many[1][name]) < 1e-5, name
    for path in one[0]:
        np.testing.assert_allclose(one[0][path], many[0][path], atol=1e-5)


def test_weights_in_integers_do_not_train():
    with pytest.raises(ValueError, match="quantize='nf4'.*cannot train: set adapter="):
        recipe(SFT(), "nf4", None, "cached")
