"""LoRA export: the adapter that `peft` loads gives the logits of the merged model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub.peft import adapter_tensors, save_adapter
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.models import decoder, heads, lora
from alanything_jax.models.params import init
from tests.hub import oracles
from tests.hub.test_parity import rows, theirs

EVERY = "layers/attn/*|layers/mlp/*"
DORA = {"dora": True}


@pytest.mark.parametrize(
    "targets,options,quantize",
    [
        (EVERY, {}, ""),
        ("layers/attn/q", {"rank_stabilized": True}, ""),
        (EVERY, DORA, ""),
        (EVERY, {}, "int8"),
        (EVERY, DORA | {"rank_stabilized": True}, "nf4"),
    ],
)
def test_peft_equals_merged(tmp_path, targets, options, quantize):
    oracles.make("qwen3").save_pretrained(tmp_path / "hf")
    source = ModelSource(str(tmp_path / "hf"), quantize=quantize)
    bundle = load_model(source)
    settings = lora.Lora(4, 12.0, targets, **options)
    specs = lora.lora_specs(bundle.model.specs(), settings)
    adapter = jax.tree.map(lambda x: 0.1 * x, init(specs, jax.random.key(0)))
    noise = jax.random.key(1)
    adapter = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(noise, x.shape), adapter
    )
    save_adapter(bundle, adapter, settings, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "hf")
    assert config["use_dora"] == settings.dora
    merged = lora.merge(bundle.params, adapter, settings.scale)
    hub.save(dataclasses.replace(bundle, params=merged), tmp_path / "merged")

    arrays = rows()
    # The base as it was trained upon: with its kernels rounded.
    hub.save(bundle, tmp_path / "rounded")
    base, plain, full = (
        theirs(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n), arrays)
        for n in ("hf", "rounded", "merged")
    )
    assert np.any(base != plain) == bool(quantize)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")
    with_adapter = theirs(
        peft.PeftModel.from_pretrained(loaded, str(tmp_path / "adapter")).eval(), arrays
    )
    assert np.max(np.abs(with_adapter - full)) <= 1e-4
    assert np.max(np.abs(with_adapter - plain)) > 1e-2

    @jax.jit
    def ours(params, adapter, inputs):
        how = {"lora": adapter, "lora_scale": settings.scale}
        cfg = bundle.model.config
        return heads.logits(params, cfg, decoder.hidden(params, cfg, inputs, **how))

    logits = ours(bundle.params, adapter, bundle.model.inputs(**arrays))
    real = arrays["attention_mask"] > 0
    assert np.max(np.abs(logits - with_adapter)[real]) <= 1e-4
    assert torch.float32 == loaded.dtype and jnp.float32 == logits.dtype


def test_names_are_those_that_peft_saves(tmp_path):
    oracles.make("qwen3").save_pretrained(tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    modules = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    config = peft.LoraConfig(r=4, use_dora=True, target_modules=modules)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    want = safetensors.numpy.load_file(
        tmp_path / "theirs" / "adapter_model.safetensors"
    )
    bundle = hub.load(tmp_path / "hf")
    specs = lora.lora_specs(bundle.model.specs(), lora.Lora(4, dora=True))
    ours = adapter_tensors(bundle, init(specs, jax.random.key(0)))
    assert {n: x.shape for n, x in ours.items()} == {
        n: x.shape for n, x in want.items()
    }
    for name, value in want.items():
        if "magnitude" in name:
            np.testing.assert_allclose(ours[name], value, rtol=1e-5)


def test_lora_without_a_target_says_what_there_is():
    from alanything_jax.models.model import Model
    from tests import toys

    specs = Model("toy", toys.CONFIG).specs()
    with pytest.raises(ValueError, match="match no kernel; the kernels are"):
        lora.lora_specs(specs, lora.Lora(targets="layers/attn/query"))
