"""LoRA export: the adapter that `peft` loads gives the logits of the merged model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub.peft import save_adapter
from alanything_jax.models import lora
from alanything_jax.models.params import init
from tests.hub import oracles
from tests.hub.test_parity import rows, theirs


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("targets", ["layers/attn/*|layers/mlp/*", "layers/attn/q"])
def test_peft_equals_merged(tmp_path, stabilized, targets):
    oracles.make("qwen2").save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf")
    settings = lora.Lora(4, 12.0, targets, stabilized)
    specs = lora.lora_specs(bundle.model.specs(), settings)
    adapter = jax.tree.map(lambda x: 0.1 * x, init(specs, jax.random.key(0)))
    noise = jax.random.key(1)
    adapter = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(noise, x.shape), adapter
    )
    save_adapter(bundle, adapter, settings, tmp_path / "adapter")
    merged = lora.merge(bundle.params, adapter, settings.scale)
    hub.save(dataclasses.replace(bundle, params=merged), tmp_path / "merged")

    arrays = rows()
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    plain = theirs(base, arrays)
    with_adapter = theirs(
        peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval(), arrays
    )
    full = theirs(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), arrays
    )
    assert np.max(np.abs(with_adapter - full)) <= 1e-4
    assert np.max(np.abs(with_adapter - plain)) > 1e-2
    from alanything_jax.models import decoder, heads

    hidden = decoder.hidden(
        bundle.params,
        bundle.model.config,
        bundle.model.inputs(**arrays),
        lora=adapter,
        lora_scale=settings.scale,
    )
    ours = np.asarray(heads.logits(bundle.params, bundle.model.config, hidden))
    real = arrays["attention_mask"] > 0
    assert np.max(np.abs(ours - with_adapter)[real]) <= 1e-4
    assert torch.float32 == base.dtype and jnp.float32 == ours.dtype


def test_lora_without_a_target_says_what_there_is():
    from alanything_jax.models.model import Model
    from tests import toys

    specs = Model("toy", toys.CONFIG).specs()
    with pytest.raises(ValueError, match="match no kernel; the kernels are"):
        lora.lora_specs(specs, lora.Lora(targets="layers/attn/query"))
