"""Gemma3 against transformers: text alone, and with pictures larger than the window."""

import jax
import numpy as np
import pytest
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub.verify import verify
from alanything_jax.models import decoder, families
from tests.hub import oracles, pictures

TEXT = oracles.COMMON | dict(
    num_hidden_layers=4,
    head_dim=16,
    query_pre_attn_scalar=24,
    sliding_window=6,
    layer_types=["sliding_attention", "full_attention"] * 2,
    rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
)
TOWER = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=24,
    patch_size=2,
    vision_use_head=False,
)


def make(text=None, tower=None, outputs=9, **special):
    return pictures.redraw(
        transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**TEXT | (text or {})),
            vision_config=transformers.SiglipVisionConfig(**TOWER | (tower or {})),
            mm_tokens_per_image=outputs,
            **{"image_token_index": pictures.IMAGE} | special,
        )
    )


def rows(side=24, outputs=9, token=pictures.IMAGE):
    """Pictures of 9 tokens where a window is 6; rows longer than both."""
    arrays = pictures.rows(side, outputs, 40, token)
    return arrays | {"token_type_ids": (arrays["input_ids"] == token).astype(np.int64)}


CASES = {
    "pool 4": (dict(), dict()),
    # A placeholder outside the vocabulary; no pooling; a tower with a head of its own.
    "no pool": (
        dict(
            text={"attention_bias": True, "num_key_value_heads": 4},
            tower={"vision_use_head": True, "image_size": 6},
            image_token_index=120,
        ),
        dict(side=6, token=120),
    ),
    "untied": (
        dict(
            text={"num_key_value_heads": 1, "layer_types": None},
            tower={"image_size": 16, "hidden_act": "gelu"},
            outputs=16,
            tie_word_embeddings=False,
        ),
        dict(side=16, outputs=16),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_files_equal_transformers(name, tmp_path):
    special, shape = CASES[name]
    arrays = rows(**shape)
    bundle, expected = pictures.check(make(**special), arrays, tmp_path)
    # Without types the blocks follow from the placeholders; without blocks all differs.
    types = arrays.pop("token_type_ids")
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    # Lists, as a tokenizer gives them, do as well.
    assert (
        pictures.gap(bundle, arrays | {"token_type_ids": types.tolist()}, expected)
        <= 1e-4
    )
    with pytest.raises(ValueError, match="token_type_ids .* and input_ids .* differ"):
        bundle.model.inputs(**arrays, token_type_ids=types[:1])
    causal = arrays | {"token_type_ids": 0 * types}
    assert pictures.gap(bundle, causal, expected) > 1e-2


def test_pictures_that_touch_are_one_block(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    arrays = {name: a[:2] for name, a in rows().items()}
    arrays["input_ids"][0, 11:20] = pictures.IMAGE
    arrays["input_ids"][0, 20:24] = 7
    arrays["pixel_values"] = rows()["pixel_values"][:3]
    arrays["token_type_ids"] = (arrays["input_ids"] == pictures.IMAGE).astype(np.int64)
    expected = pictures.theirs(model, arrays)
    assert pictures.gap(hub.load(tmp_path), arrays, expected) <= 1e-4


def old_text(text):
    """As transformers 4 spells it: two thetas, a scaling, a period of layers."""
    ropes = text.pop("rope_parameters")
    text["rope_theta"] = ropes["full_attention"]["rope_theta"]
    text["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    del text["layer_types"]
    text["sliding_window_pattern"] = 2
    return text


def test_hub_spelling_and_gradients(tmp_path):
    model, arrays = make(), rows()
    expected = pictures.theirs(model, arrays)
    model.save_pretrained(tmp_path)

    def old(config):
        del config["tie_word_embeddings"]
        return config | {"text_config": old_text(config["text_config"])}

    new = "vision_tower."
    pictures.respell(
        tmp_path, old, lambda name: name.replace(new, f"{new}vision_model.")
    )
    bundle = hub.load(tmp_path)
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    grads = pictures.gradients(bundle, arrays)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path


@pytest.mark.parametrize("spelling", ["new", "old"])
def test_text_model(spelling, tmp_path):
    config = transformers.Gemma3TextConfig(**TEXT)
    model = transformers.Gemma3ForCausalLM(config)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.2 * torch.randn_like(value))
    model.eval().save_pretrained(tmp_path / "hf")
    if spelling == "old":
        pictures.respell(tmp_path / "hf", old_text, lambda name: name)
    arrays = pictures.text_of(rows()) | {"attention_mask": np.ones((1, 40), np.int64)}
    del arrays["token_type_ids"]
    bundle = hub.load(tmp_path / "hf")
    assert pictures.gap(bundle, arrays, pictures.theirs(model, arrays)) <= 1e-4
    hub.save(bundle, tmp_path / "out")
    checks = verify(tmp_path / "out", tmp_path / "hf")
    assert [c for c in checks if c.passed is False] == []


def test_embeddings_are_scaled_in_their_own_precision(tmp_path):
    """sqrt(48) is 6.9375 in bfloat16, as checkpoints were trained."""
    model = make().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    bundle = hub.load(tmp_path, dtype="bfloat16")
    ids = np.arange(90)[None]
    ours = decoder.embed(bundle.params, bundle.model.config, ids, "bfloat16")
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.tensor(ids)).float().numpy()
    np.testing.assert_array_equal(np.asarray(ours, np.float32), expected)


def test_what_a_config_leaves_out():
    """What google/gemma-3-4b-it says of its text model, and no more."""
    said = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    cfg = families.family_of("gemma3").config({"text_config": said})
    assert (cfg.vocab_size, cfg.num_heads, cfg.num_kv_heads) == (262208, 8, 4)
    assert (cfg.head_width, cfg.query_scale, cfg.tied) == (256, 1 / 16, True)
    assert (cfg.rope_theta, cfg.local_theta, cfg.rope_scaling.factor) == (1e6, 1e4, 8)
    assert [n for n in range(34) if not cfg.window_layers[n]] == [5, 11, 17, 23, 29]
    assert cfg.encoders[0].placeholder == 262144


@pytest.mark.parametrize(
    "wrong",
    [
        {"final_logit_softcapping": 30.0},
        {"attn_logit_softcapping": 50.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "relu"},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "linear", "factor": 2}
            }
        },
    ],
)
def test_what_is_not_supported_is_said(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        families.family_of("gemma3_text").config(wrong)
