"""Every family goes out and comes back: whole in transformers, with equal logits, in
float32 and bfloat16; its adapter has PEFT's names and gives the merged logits."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from alanything_jax.hub.peft import save_adapter
from alanything_jax.hub.tiny import MEDIA, tiny_bundle
from alanything_jax.hub.verify import verify
from alanything_jax.models import lora
from alanything_jax.models.families import FAMILIES, family_of
from alanything_jax.models.params import flatten, init
from tests.hub import pictures, test_chameleon, test_emu3, test_janus

# Families whose codec is among their weights, and Omni: models of their own tests.
CODES = {"chameleon": test_chameleon, "emu3": test_emu3, "janus": test_janus}
WHOLE = [name for name in FAMILIES if name != "qwen2_5_omni"]
LORA = lora.Lora(4, 12.0)
# What vLLM finds (its classes' `hf_to_vllm_mapper`), and PEFT.
TRUNKS = dict.fromkeys(MEDIA, "model.language_model.") | {
    "janus": "model.language_model.",
    "emu3": "model.text_model.",
    "qwen2_5_omni": "thinker.model.language_model.",
}


def shaken(tree, size=0.1):
    """Norms and biases off their defaults."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + (size * rng.normal(size=x.shape)).astype(x.dtype), tree
    )


def made(family, folder, dtype="float32"):
    """A bundle, and the arrays of a row with media and a row of text."""
    if family in CODES:
        model = CODES[family].make().to(getattr(torch, dtype))
        model.save_pretrained(folder)
        bundle = hub.load(folder, dtype=dtype)
    else:
        bundle = tiny_bundle(family, dtype=dtype)
        bundle = dataclasses.replace(bundle, params=shaken(bundle.params))
    return bundle, arrays_of(bundle)


def arrays_of(bundle):
    """As transformers' processors give them."""
    family, config = bundle.model.family, bundle.hf_config
    rng = np.random.default_rng(0)
    if family == "emu3":
        return test_emu3.arrays_of()
    if family in ("chameleon", "janus"):
        outputs = {"chameleon": 16, "janus": 9}[family]
        return pictures.rows(CODES[family].SIDE, outputs, 30 + outputs)
    ids, mask, out = rng.integers(10, 250, (2, 30)), np.ones((2, 30), np.int64), {}
    mask[1, -5:] = 0

    def placed(kind, first, outputs):
        token = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
        ids[0, first : first + outputs] = token
        return ids == token

    if family in ("llava", "gemma3"):
        image = placed("image", 3, 16 if family == "llava" else 4)
        out["pixel_values"] = rng.normal(size=(1, 3, 16, 16))
        if family == "gemma3":
            out["token_type_ids"] = image.astype(np.int64)
    elif "image" in MEDIA.get(family, ("", ()))[1]:
        image = placed("image", 3, 6)
        out["pixel_values"] = rng.normal(size=(24, 3 * 2 * 4**2))
        out["image_grid_thw"] = np.array([[1, 4, 6]])
        if "omni" not in family:
            out["mm_token_type_ids"] = image.astype(np.int64)
    if "audio" in MEDIA.get(family, ("", ()))[1]:
        placed("audio", 12, 10)
        frames = 200 if family == "qwen2_audio" else 40
        out["input_features"] = rng.normal(size=(1, 16, frames))
        out["feature_attention_mask"] = (np.arange(frames) < 40)[None].astype(np.int64)
    out = {n: a.astype(np.float32) if a.dtype == float else a for n, a in out.items()}
    return {"input_ids": ids, "attention_mask": mask, **out}


def loaded(folder):
    """transformers' model, in float32; nothing missing, nothing left over."""
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    return model.eval()


def theirs(model, arrays):
    """Logits before Chameleon masks those of codes."""
    given = {n: torch.tensor(a) for n, a in arrays.items()}
    with torch.no_grad():
        if "Chameleon" in type(model).__name__:
            return model.lm_head(model.model(**given).last_hidden_state).numpy()
        return model(**given).logits.numpy()


@pytest.mark.parametrize("family", WHOLE)
def test_out_and_back(family, tmp_path):
    for dtype in ("float32", "bfloat16"):
        bundle, arrays = made(family, tmp_path / f"hf {dtype}", dtype)
        out = hub.save(bundle, tmp_path / dtype)
        entries = [entry for _, entry in files.locate(out).values()]
        short = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        assert {e["dtype"] for e in entries if e["dtype"] != "I64"} == {short}
        again = hub.load(out, dtype=dtype, mrope_advance="grid")
        before, after = flatten(bundle.params), flatten(again.params)
        assert before.keys() == after.keys()
        for path, value in before.items():
            np.testing.assert_array_equal(value, after[path], err_msg=path)
        wide = dataclasses.replace(
            again, params=jax.tree.map(lambda x: x.astype(jnp.float32), again.params)
        )
        assert pictures.gap(wide, arrays, theirs(loaded(out), arrays)) <= 1e-4
    checks = verify(out)
    assert checks and all(check.passed for check in checks), checks


@pytest.mark.parametrize("family", WHOLE)
def test_peft_loads_the_adapter_whole_and_its_logits_are_the_merged(family, tmp_path):
    bundle, arrays = made(family, tmp_path / "hf")
    specs = lora.lora_specs(bundle.model.specs(), LORA)
    adapter = shaken(init(specs, jax.random.key(0)))
    folder = save_adapter(bundle, adapter, LORA, tmp_path / "adapter")
    merged = lora.merge(bundle.params, adapter, LORA.scale)
    hub.save(bundle, tmp_path / "base")
    model = loaded(tmp_path / "base")
    plain = theirs(model, arrays)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    assert not [w for w in said if "adapter keys" in str(w.message)]
    # PEFT's own names of what it now holds, and its values: all of ours, nothing else.
    held = peft.get_peft_model_state_dict(adapted)
    ours = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert held.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(held[name].numpy(), value)
        trunk = re.escape(TRUNKS.get(family, "model."))
        assert re.fullmatch(
            rf"base_model\.model\.{trunk}layers\.\d+\.(self_attn|mlp)\..*", name
        )
    found = theirs(adapted.base_model.model, arrays)
    full = dataclasses.replace(bundle, params=merged)
    assert pictures.gap(full, arrays, found) <= 1e-4
    assert np.max(np.abs(found - plain)) > 1e-2
