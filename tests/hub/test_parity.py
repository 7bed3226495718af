"""Import, forward and export against transformers on tiny random models."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from alanything_jax.hub.load import read_tokenizer
from alanything_jax.hub.verify import verify
from alanything_jax.models import families
from tests.hub import oracles, vq


def rows(vocab=99, seed=0):
    """Two right-padded rows of unequal length."""
    ids = np.random.default_rng(seed).integers(3, vocab, (2, 17))
    mask = np.ones_like(ids)
    ids[1, 11:], mask[1, 11:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def theirs(model, arrays):
    with torch.no_grad():
        out = model(**{n: torch.tensor(a) for n, a in arrays.items()})
    return out.logits.float().numpy()


def test_a_chat_template_where_older_processors_kept_it(tmp_path):
    """transformers' tokenizers read the .jinja alone, and say nothing of the other."""
    tok = vq.tokenizer([], "{{ 'old' }}")
    tok.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path).chat_template == "{{ 'old' }}"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    assert read_tokenizer(tmp_path).chat_template == "{{ 'old' }}"
    (tmp_path / "chat_template.jinja").unlink()
    assert read_tokenizer(tmp_path).chat_template == "of a processor"


@pytest.mark.parametrize("name", oracles.FAMILIES)
def test_logits_and_files_equal_transformers(name, tmp_path):
    model = oracles.make(name)
    model.save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf")
    assert bundle.tokenizer is None
    arrays = rows()
    ours = np.asarray(bundle.model.logits(bundle.params, bundle.model.inputs(**arrays)))
    real = arrays["attention_mask"] > 0
    assert ours.dtype == np.float32
    assert np.max(np.abs(ours - theirs(model, arrays))[real]) <= 1e-4

    hub.save(bundle, tmp_path / "out")
    before = safetensors.numpy.load_file(tmp_path / "hf" / files.SINGLE)
    after = safetensors.numpy.load_file(tmp_path / "out" / files.SINGLE)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and value.shape == after[key].shape
        assert value.tobytes() == after[key].tobytes(), key
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    checks = verify(tmp_path / "out", tmp_path / "hf")
    assert [c.name for c in checks if c.passed is False] == []


def test_sharded_bfloat16_round_trip(tmp_path):
    model = oracles.make("qwen3").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert (tmp_path / "hf" / files.INDEX).exists()
    bundle = hub.load(tmp_path / "hf")
    hub.save(bundle, tmp_path / "out", max_shard_bytes=30_000)
    before, after = (files.locate(tmp_path / d) for d in ("hf", "out"))
    assert len({path for path, _ in after.values()}) > 2
    assert before.keys() == after.keys()
    for name in before:
        old, new = files.read(*before[name]), files.read(*after[name])
        assert old.dtype == new.dtype and old.tobytes() == new.tobytes()
    assert all(c.passed is not False for c in verify(tmp_path / "out"))


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_old_and_new_config_spellings(spelling, tmp_path):
    oracles.make("llama-3.1").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if spelling == "old":
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = rope
        config["torch_dtype"] = config.pop("dtype")
        (tmp_path / "config.json").write_text(json.dumps(config))
    cfg = hub.load(tmp_path).model.config
    assert cfg.rope_theta == 500000.0
    assert cfg.rope_scaling.factor == 8.0
    assert cfg.rope_scaling.original_max_positions == 64


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3-moe"])
def test_a_config_without_head_dim(name):
    """transformers takes 128 in Qwen3, else the width over the heads."""
    config = transformers.AutoConfig.for_model(
        name.replace("-", "_"),
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    hf = config.to_dict()
    hf.pop("head_dim", None)
    width = families.family_of(hf["model_type"]).config(hf).head_width
    assert width == (128 if name == "qwen3" else 12)
    assert getattr(config, "head_dim", 12) == width


def test_reward_model_is_a_sequence_classifier(tmp_path):
    model = oracles.make("llama", "ForSequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf")
    arrays = rows()
    scores = np.asarray(
        bundle.model.scores(bundle.params, bundle.model.inputs(**arrays))
    )
    last = arrays["attention_mask"].sum(1) - 1
    expected = theirs(model, arrays)[:, 0]
    np.testing.assert_allclose(scores[np.arange(2), last], expected, atol=1e-4)
    hub.save(bundle, tmp_path / "out")
    assert all(c.passed for c in verify(tmp_path / "out", tmp_path / "hf"))


def test_tied_head_written_twice_is_accepted(tmp_path):
    """Old exporters wrote lm_head beside the embedding it is tied to."""
    oracles.make("qwen2").save_pretrained(tmp_path)
    arrays = safetensors.numpy.load_file(tmp_path / files.SINGLE)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(arrays, tmp_path / files.SINGLE, {"format": "pt"})
    bundle = hub.load(tmp_path)
    assert "heads" not in bundle.params
    assert "lm_head.weight" in bundle.extra


def broken(tmp_path, change):
    oracles.make("llama").save_pretrained(tmp_path)
    arrays = safetensors.numpy.load_file(tmp_path / files.SINGLE)
    change(arrays)
    safetensors.numpy.save_file(arrays, tmp_path / files.SINGLE, {"format": "pt"})


def test_every_wrong_tensor_is_listed_at_once(tmp_path):
    def change(arrays):
        del arrays["model.norm.weight"]
        del arrays["model.layers.1.mlp.up_proj.weight"]
        arrays["model.layers.0.surprise"] = np.zeros(3, np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"][:-1]

    broken(tmp_path, change)
    with pytest.raises(ValueError) as caught:
        hub.load(tmp_path)
    message = str(caught.value)
    for part in (
        "2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "1 unexpected: model.layers.0.surprise",
        "lm_head.weight is [98, 48], expected [99, 48]",
        "Nothing was loaded",
    ):
        assert part in message


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.0, 0.999))
def test_truncated_safetensors_names_the_file(share, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    oracles.make("llama").save_pretrained(folder)
    path = folder / files.SINGLE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="model.safetensors is truncated"):
        hub.load(folder)


def test_missing_shard_and_missing_weights(tmp_path):
    oracles.make("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("model-*"))[0]
    gone.unlink()
    with pytest.raises(ValueError, match=gone.name):
        hub.load(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    with pytest.raises(ValueError, match="Only safetensors"):
        hub.load(tmp_path)


def test_unknown_family_and_rope(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"model_type='bert'; supported are .*'llama'"):
        hub.load(tmp_path)
    oracles.make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="rope type 'yarn'"):
        hub.load(tmp_path)


def test_export_never_overwrites(tmp_path):
    oracles.make("llama").save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf")
    with pytest.raises(
        ValueError, match="is not empty, and an export never overwrites"
    ):
        hub.save(bundle, tmp_path / "hf")
    assert not list(tmp_path.glob(".*incomplete"))


def test_verify_notices_changed_weights(tmp_path):
    oracles.make("llama").save_pretrained(tmp_path / "hf")
    hub.save(hub.load(tmp_path / "hf"), tmp_path / "out")
    arrays = safetensors.numpy.load_file(tmp_path / "out" / files.SINGLE)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * 1.5
    safetensors.numpy.save_file(
        arrays, tmp_path / "out" / files.SINGLE, {"format": "pt"}
    )
    failed = {c.name for c in verify(tmp_path / "out") if c.passed is False}
    assert {"hashes", "our reloaded outputs"} <= failed


def test_unknown_input_array(tmp_path):
    oracles.make("llama").save_pretrained(tmp_path)
    bundle = hub.load(tmp_path)
    with pytest.raises(ValueError, match="pixel_values"):
        bundle.model.inputs(input_ids=np.ones((1, 2)), pixel_values=np.ones(3))
    for ids, mask in ((np.ones(2), np.ones(2)), (np.ones((1, 2)), np.ones((1, 3)))):
        with pytest.raises(ValueError, match=r"both are \[B, T\]"):
            bundle.model.inputs(input_ids=ids, attention_mask=mask)
