"""Janus against transformers: a tower that reads; what draws passes through."""

import jax
import numpy as np
import pytest
import transformers
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from alanything_jax import hub
from alanything_jax.data.encode import BadRecord, Limits, encode
from alanything_jax.data.template import render_prompt
from alanything_jax.models import families
from alanything_jax.schema import Example, Message, Part, Response
from tests.hub import pictures, vq

SIDE = 12
MARKS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
    "bos_token": "<bos>",
}
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image_placeholder>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}<|im_end|>{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>: {% endif %}"
)


def make(text=None, tie=False, image=pictures.IMAGE, **vision):
    tower = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
        mlp_ratio=2.5,
        projection_dim=32,
        num_image_tokens=9,
    )
    net = dict(
        num_embeddings=vq.CODES,
        embed_dim=8,
        latent_channels=16,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            **vq.TEXT | {"bos_token_id": 1} | (text or {})
        ),
        vision_config=transformers.JanusVisionConfig(**tower | vision),
        vq_config=transformers.JanusVQVAEConfig(**vq.NET | net),
        image_token_id=image,
        tie_word_embeddings=tie,
    )
    return vq.redraw(config, SIDE)


def chat(folder):
    """A directory with tokenizer and processor, and its transformers' model."""
    tok = vq.tokenizer(list(MARKS.values()), TEMPLATE, begins=True, **MARKS)
    text = {
        n: getattr(tok, n) for n in ("bos_token_id", "pad_token_id", "eos_token_id")
    }
    text |= {"vocab_size": len(tok) + 3}
    image = tok.convert_tokens_to_ids(MARKS["image_token"])
    model = make(text=text, image=image)
    # What was drawn, and what was said, must matter to what is drawn next.
    model.model.generation_embeddings.weight.data *= 8
    model.model.generation_head.proj_out.weight.data *= 4
    model.get_input_embeddings().weight.data *= 4
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"height": SIDE, "width": SIDE}
    pixels = JanusImageProcessorPil(size=size, min_size=4, **half)
    for part in (model, tok, pixels):
        part.save_pretrained(folder)
    return model, tok, pixels


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"tie": True, "attention_bias": False, "depth": 3},
        {
            "text": {"head_dim": 16, "attention_bias": True},
            "hidden_act": "gelu_pytorch_tanh",
        },
    ],
    ids=["plain", "tied", "options"],
)
def test_logits_and_files_equal_transformers(special, tmp_path):
    arrays = pictures.rows(SIDE, 9, 30)
    bundle, expected = pictures.check(make(**special), arrays, tmp_path)
    arrays["pixel_values"] = arrays["pixel_values"][::-1]
    assert pictures.gap(bundle, arrays, expected) > 1e-2


def said(text):
    return Part("text", text=text)


def test_a_picture_in_a_chat_is_read_as_the_processor_reads_it(tmp_path):
    model, tok, pixels = chat(tmp_path)
    bundle = hub.load(tmp_path)
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    parts = (said("see "), Part("image", data=picture))
    ours, placed = render_prompt(tok, [Message("user", parts)], bundle.coder)
    content = [{"type": "text", "text": "see "}, {"type": "image"}]
    text = tok.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    processor = transformers.JanusProcessor(pixels, tok, num_image_tokens=9)
    given = processor(text, picture)
    np.testing.assert_array_equal(given["input_ids"][0], ours)
    (medium,) = placed.media
    theirs = bundle.model.inputs(**{n: a.numpy() for n, a in given.items()})
    patches = medium.make().arrays["patches"]
    np.testing.assert_allclose(
        theirs.media["vision"]["patches"][0, :9], patches, atol=1e-5
    )


def test_an_answer_with_a_picture_goes_to_quarantine(tmp_path):
    _, tok, _ = chat(tmp_path)
    bundle = hub.load(tmp_path)
    answer = Message("assistant", (Part("image", data=np.zeros((9, 9, 3), np.uint8)),))
    example = Example("1", (Message("user", (said("draw"),)),), (Response((answer,)),))
    with pytest.raises(
        BadRecord, match=r"responses\[0\]: .* holds image, .* reads through"
    ):
        encode(example, tok, Limits(), bundle.coder)


def test_files_of_transformers_4_and_gradients(tmp_path):
    """They say nothing of ties, and their head is on disk."""
    model, arrays = make(), pictures.rows(SIDE, 9, 30)
    expected = pictures.theirs(model, arrays)
    model.save_pretrained(tmp_path)

    def old(config):
        text = config["text_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        del config["tie_word_embeddings"], text["tie_word_embeddings"], text["head_dim"]
        return config

    pictures.respell(tmp_path, old, str)
    bundle = hub.load(tmp_path)
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    grads = pictures.gradients(bundle, arrays)
    assert all(
        np.isfinite(g).all() and np.abs(g).max() > 0
        for g in jax.tree.leaves(grads["encoders"])
    )


def test_what_a_config_leaves_out_and_what_is_not_supported():
    family = families.family_of("janus")
    text = {"text_config": {"hidden_size": 2048}}
    (vit,) = family.config(text).encoders
    assert (vit.width, vit.ffw_width, vit.num_layers, vit.num_heads) == (
        1024,
        4096,
        24,
        16,
    )
    assert (vit.placeholder, vit.out_width, vit.projector_layers) == (100_581, 2048, 2)
    for wrong, says in (
        ({"vision_config": {"use_qk_norm": True}}, "use_qk_norm"),
        ({"vision_config": {"projection_dim": 8}}, "projection_dim=8 differs"),
        ({"text_config": {"model_type": "opt"}}, "'opt': supported is llama"),
    ):
        with pytest.raises(ValueError, match=says):
            family.config(text | wrong)
