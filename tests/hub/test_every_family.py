"""Every family goes out and comes back: whole in transformers, with equal logits, in
float32 and bfloat16; its adapter has PEFT's names and gives the merged logits."""

import dataclasses
import json
import re

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
from alanything_jax.hub.peft import adapter_tensors, save_adapter
from alanything_jax.hub.save import MANIFEST, probe
from alanything_jax.hub.tiny import MEDIA, tiny_bundle
from alanything_jax.hub.verify import verify
from alanything_jax.models import lora
from alanything_jax.models.families import FAMILIES
from alanything_jax.models.params import flatten, init
from tests.hub import pictures, test_chameleon, test_emu3, test_janus

# Families whose codec is among their weights: models of their own tests.
CODES = {"chameleon": test_chameleon, "emu3": test_emu3, "janus": test_janus}
# What vLLM finds (its classes' `hf_to_vllm_mapper`), and PEFT.
TRUNKS = dict.fromkeys(MEDIA, "model.language_model.") | {
    "janus": "model.language_model.",
    "emu3": "model.text_model.",
}
torch.set_num_threads(1)  # Models so tiny lose by more.
# What stands before a medium, where transformers looks for that.
STARTS = {"image": 7, "audio": 8}


def shaken(tree, size=0.1):
    """Norms and biases off their defaults."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + (size * rng.normal(size=x.shape)).astype(x.dtype), tree
    )


def made(family, folder):
    """A bundle with its norms and biases off their defaults."""
    if family in CODES:
        CODES[family].make().save_pretrained(folder)
        return hub.load(folder)
    bundle = tiny_bundle(family)
    named = dict(vision_start_token_id=STARTS["image"])
    named |= dict(audio_start_token_id=STARTS["audio"])
    config = bundle.hf_config | (named if family == "qwen2_5_omni_thinker" else {})
    return dataclasses.replace(bundle, params=shaken(bundle.params), hf_config=config)


def narrow(bundle):
    """The same in bfloat16."""
    own, unread = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x,
        (bundle.params, bundle.extra),
    )
    return dataclasses.replace(
        bundle,
        params=own,
        extra=unread,
        dtypes={n: "BF16" for n in bundle.dtypes if n not in unread},
        hf_config=bundle.hf_config | {"dtype": "bfloat16"},
    )


def arrays_of(bundle):
    """A row with media and a row of text, as transformers' processors give them."""
    family, config = bundle.model.family, bundle.hf_config
    rng = np.random.default_rng(0)
    if family == "emu3":
        return test_emu3.arrays_of()
    if family in CODES:
        outputs = {"chameleon": 16, "janus": 9}[family]
        return pictures.rows(CODES[family].SIDE, outputs, 30 + outputs)
    ids, mask, out = rng.integers(10, 250, (2, 30)), np.ones((2, 30), np.int64), {}
    mask[1, -5:] = 0
    kinds = MEDIA[family][1] if family in MEDIA else ()

    def place(kind, first, outputs):
        token = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
        ids[0, first - 1], ids[0, first : first + outputs] = STARTS[kind], token
        return (ids == token).astype(np.int64)

    if family in ("llava", "gemma3"):
        image = place("image", 3, 16 if family == "llava" else 4)
        out = {"pixel_values": rng.normal(size=(1, 3, 16, 16))}
        if family == "gemma3":
            out["token_type_ids"] = image
    elif "image" in kinds:
        image = place("image", 3, 6)
        out = {"pixel_values": rng.normal(size=(24, 3 * 2 * 4**2))}
        out["image_grid_thw"] = np.array([[1, 4, 6]])
        if "audio" not in kinds:
            out["mm_token_type_ids"] = image
    if "audio" in kinds:
        place("audio", 12, 10)
        frames = 200 if family == "qwen2_audio" else 40
        out["input_features"] = rng.normal(size=(1, 16, frames))
        out["feature_attention_mask"] = 1 * (np.arange(frames) < 40)[None]
    out = {n: a.astype(np.float32) if a.dtype == float else a for n, a in out.items()}
    return {"input_ids": ids, "attention_mask": mask, **out}


def loaded(folder):
    """transformers' model, in float32; nothing missing, nothing left over."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
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


NAMES = [name for name in FAMILIES if name != "qwen2_5_omni"]
# Each family's own file has its logits and files; `make test-all` has all of them here.
QUICK = ("qwen3_moe", "gemma3", "qwen2_vl", "qwen2_audio")
SOME = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in NAMES
]


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory):
    """A bundle, arrays, and the directory it was written to."""
    folder = tmp_path_factory.mktemp("hub")
    bundle = made(request.param, folder / "hf")
    return bundle, arrays_of(bundle), hub.save(bundle, folder / "out")


def check(bundle, arrays, out, dtype):
    """Every tensor comes back as it was; transformers' logits are ours."""
    again = hub.load(out, dtype=dtype)
    before, after = flatten(bundle.params), flatten(again.params)
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), again.params)
    wide = dataclasses.replace(again, params=wide)
    assert pictures.gap(wide, arrays, theirs(loaded(out), arrays)) <= 1e-4


@pytest.mark.parametrize("exported", SOME, indirect=True)
def test_out_and_back(exported):
    bundle, arrays, out = exported
    check(bundle, arrays, out, "float32")
    checks = verify(out)
    assert checks and all(check.passed for check in checks), checks


@pytest.mark.parametrize("exported", SOME, indirect=True)
def test_out_and_back_in_bfloat16(exported, tmp_path):
    wide, arrays, _ = exported
    bundle = narrow(wide)
    out = hub.save(bundle, tmp_path / "out")
    kinds = {entry["dtype"] for _, entry in files.locate(out).values()}
    assert kinds - {"I64"} == {"BF16"}
    check(bundle, arrays, out, "bfloat16")


@pytest.mark.parametrize("exported", SOME, indirect=True)
def test_peft_loads_the_adapter_whole_and_its_logits_are_the_merged(exported, tmp_path):
    bundle, arrays, out = exported
    settings = lora.Lora(4, 12.0)
    specs = lora.lora_specs(bundle.model.specs(), settings)
    adapter = shaken(init(specs, jax.random.key(0)))
    folder = save_adapter(bundle, adapter, settings, tmp_path / "adapter")
    model = loaded(out)
    plain = theirs(model, arrays)
    adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    # All of ours under PEFT's own names, and nothing that was not given.
    held = peft.get_peft_model_state_dict(adapted)
    ours = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert held.keys() == ours.keys()
    trunk = re.escape(TRUNKS.get(bundle.model.family, "model."))
    for name, value in ours.items():
        np.testing.assert_array_equal(held[name].numpy(), value)
        assert re.match(rf"base_model\.model\.{trunk}layers\.\d+\.\w+\.\w+_proj", name)
    found = theirs(adapted.base_model.model, arrays)
    merged = lora.merge(bundle.params, adapter, settings.scale)
    bundle = dataclasses.replace(bundle, params=merged)
    assert pictures.gap(bundle, arrays, found) <= 1e-4
    assert np.max(np.abs(found - plain)) > 1e-2


def test_a_reward_model_without_a_class_of_its_own(tmp_path):
    """Its head goes out in a file of its own, beside weights or adapter."""
    bundle = tiny_bundle("llava")
    heads = init(bundle.model.specs(True)["heads"], jax.random.key(1))
    bundle = dataclasses.replace(bundle, params=bundle.params | {"heads": heads})
    out = hub.save(bundle, tmp_path / "out")
    *others, score = verify(out)
    assert all(check.passed for check in others), others
    assert (
        score.passed is None and "LlavaForConditionalGeneration has no" in score.detail
    )
    settings = lora.Lora(4, 12.0)
    adapter = init(lora.lora_specs(bundle.model.specs(), settings), jax.random.key(0))
    folder = save_adapter(bundle, adapter, settings, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None
    for place in (out, folder):
        head = safetensors.numpy.load_file(place / files.SCORE)
        np.testing.assert_array_equal(head["score.weight"].T, heads["score"]["kernel"])


def test_the_probe_stays_clear_of_ids_with_a_meaning_and_old_ones_are_kept(tmp_path):
    bundle = tiny_bundle("qwen2_5_omni_thinker")
    ids, _ = probe(bundle)
    named = [i for n, i in bundle.hf_config.items() if n.endswith("_token_index")]
    assert len(named) == 3 and not set(ids) & {*named, bundle.tokenizer.pad_token_id}
    small = dataclasses.replace(
        tiny_bundle("llama"),
        hf_config={"eos_token_id": [*range(9)], "a_token_id": None},
    )
    assert min(probe(small)[0]) >= 9
    out = hub.save(tiny_bundle("llama"), tmp_path / "out")
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["probe_ids"], manifest["probe_output"] = probe(
        tiny_bundle("llama"), [5] * 12
    )
    (out / MANIFEST).write_text(json.dumps(manifest))
    assert all(check.passed for check in verify(out))


def test_omni_adapters_are_named_within_its_thinker():
    """Peft's own names, of transformers' whole model in memory."""
    thinker = tiny_bundle("qwen2_5_omni_thinker")
    settings = lora.Lora(2)
    adapter = init(lora.lora_specs(thinker.model.specs(), settings), jax.random.key(0))
    model = dataclasses.replace(thinker.model, family="qwen2_5_omni")
    whole = dataclasses.replace(thinker, model=model)
    start = "base_model.model.thinker.model.language_model.layers."
    names = adapter_tensors(whole, adapter)
    assert len(names) == 2 * 2 * 7 and all(n.startswith(start) for n in names)
