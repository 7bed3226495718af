"""LLaVA against transformers, on tiny random models of each text family and tower."""

import json

import jax
import numpy as np
import pytest
import transformers

from alanything_jax import hub
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.models import families
from tests.hub import oracles, pictures

TOWER = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=12,
    patch_size=4,
)


def make(
    text="LlamaConfig", vision="CLIPVisionConfig", changes=None, size=12, **special
):
    common = oracles.COMMON | {"num_hidden_layers": 2}
    return pictures.redraw(
        transformers.LlavaConfig(
            text_config=getattr(transformers, text)(**common | (changes or {})),
            vision_config=getattr(transformers, vision)(**TOWER | {"image_size": size}),
            image_token_index=pictures.IMAGE,
            **special,
        )
    )


CASES = {
    "llama": (dict(), 9),
    "mistral": (
        dict(
            text="MistralConfig",
            changes={"sliding_window": 7, "head_dim": 16},
            vision_feature_layer=[-1, 0, -3],
            vision_feature_select_strategy="full",
            multimodal_projector_bias=False,
        ),
        10,
    ),
    "qwen2": (
        dict(
            text="Qwen2Config",
            changes={"tie_word_embeddings": True},
            vision="SiglipVisionConfig",
            size=14,  # of which a convolution of 4 leaves the last 2 out
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        9,
    ),
    "qwen3": (
        dict(
            text="Qwen3Config",
            changes={"head_dim": 16},
            vision_feature_layer=1,
            projector_hidden_act="gelu_pytorch_tanh",
        ),
        9,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_files_equal_transformers(name, tmp_path):
    special, outputs = CASES[name]
    arrays = pictures.rows(special.get("size", 12), outputs, 30)
    bundle, expected = pictures.check(make(**special), arrays, tmp_path)
    # The pictures matter, and so does their order.
    arrays["pixel_values"] = arrays["pixel_values"][::-1]
    assert pictures.gap(bundle, arrays, expected) > 1e-2


def test_hub_spelling_and_gradients(tmp_path):
    """Files of transformers 4: `vision_model.`, `rope_theta`, a buffer of positions."""
    model, arrays = make(), pictures.rows(12, 9, 30)
    expected = pictures.theirs(model, arrays)
    model.save_pretrained(tmp_path / "hf")

    def old(config):
        text = config["text_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        for key in ("head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"):
            del text[key]
        del config["tie_word_embeddings"], config["projector_hidden_act"]
        return config

    new = "vision_tower."
    pictures.respell(
        tmp_path / "hf", old, lambda name: name.replace(new, f"{new}vision_model.")
    )
    bundle = hub.load(tmp_path / "hf")
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    assert f"{new}vision_model.post_layernorm.weight" in bundle.extra
    hub.save(bundle, tmp_path / "out")
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    np.testing.assert_array_equal(pictures.theirs(again, arrays), expected)

    grads = pictures.gradients(bundle, arrays)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    tower = grads["encoders"]["vision"]
    # Of three layers the states after the second are used: the third has no say.
    used = np.abs(tower["layers"]["mlp"]["up"]["kernel"]).max(axis=(1, 2)) > 0
    assert used.tolist() == [True, True, False]
    assert all(np.abs(tower[name]).max() > 0 for name in ("class", "position"))


def test_names_of_transformers_4_5x(tmp_path):
    """Some releases saved the names that models have in memory."""
    make().save_pretrained(tmp_path)
    before = hub.load(tmp_path).params

    def memory(name):
        name = name.replace("language_model.model.", "model.language_model.")
        name = name.replace("language_model.lm_head.", "lm_head.")
        inside = name.startswith(("vision_tower", "multi_modal_projector"))
        return f"model.{name}" if inside else name

    pictures.respell(tmp_path, lambda config: config, memory)
    jax.tree.map(np.testing.assert_array_equal, before, hub.load(tmp_path).params)


def test_what_a_text_config_leaves_out():
    """The text_config of llava-hf/llava-1.5-7b-hf says no more than this."""
    cfg = families.family_of("llava").config(
        {"text_config": {"model_type": "llama", "vocab_size": 32064}}
    )
    sizes = (cfg.width, cfg.ffw_width, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads)
    assert sizes == (4096, 11008, 32, 32, 32)
    assert cfg.encoders[0].placeholder == 32000 and not cfg.tied


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"text_config": {"model_type": "opt"}}, "'opt': supported are .*llama"),
        ({"vision_config": {"model_type": "pixtral"}}, "'pixtral': supported are"),
        ({"vision_feature_layer": 20}, "choose from -13 to 12"),
        ({"vision_feature_select_strategy": "cls"}, "'cls': default"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "set it to 'full'"),
    ],
)
def test_what_is_not_supported_is_said(wrong, says):
    with pytest.raises(ValueError, match=says):
        families.family_of("llava").config(wrong)


@pytest.mark.parametrize(
    "processor, image, says",
    [
        ({"do_resize": False}, pictures.IMAGE, "do_resize = False"),
        ({"crop_size": 10}, pictures.IMAGE, "crop_size 10 in the processor's config"),
        ({}, 500, r"names the tokens \[500\] for media; the tokenizer has .*None"),
    ],
)
def test_odd_files_beside_the_weights_cost_the_coder_alone(
    processor, image, says, tmp_path
):
    model, arrays = make(), pictures.rows(12, 9, 30)
    expected = pictures.theirs(model, arrays)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"image_token_index": image})
    )
    with pytest.warns(UserWarning, match=f"`coder` is None: .*{says}"):
        bundle = hub.load(tmp_path)
    assert bundle.coder is None
    if image == pictures.IMAGE:
        assert pictures.gap(bundle, arrays, expected) <= 1e-4


def test_pictures_and_placeholders_must_fit(tmp_path):
    make().save_pretrained(tmp_path)
    inputs = hub.load(tmp_path).model.inputs
    arrays = pictures.rows(12, 9, 30)
    with pytest.raises(ValueError, match="do not fit its media"):
        inputs(**arrays | {"pixel_values": arrays["pixel_values"][:3]})
    with pytest.raises(ValueError, match=r"takes \[N, 3, 12, 12\]"):
        inputs(**arrays | {"pixel_values": np.zeros((4, 3, 16, 16))})
