"""A text model given sight is a LLaVA that transformers loads, reads and answers alike."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from alanything_jax import hub
from alanything_jax.data.template import render_prompt
from alanything_jax.hub.source import ModelSource, describe, load_model
from alanything_jax.hub.tower import MARK, vision_config
from alanything_jax.schema import Message, Part
from tests.hub import pictures

VISION = "clip:32/8/64x2"


def redrawn(bundle):
    """Norms and biases away from one and zero."""
    leaves, tree = jax.tree.flatten(bundle.params)
    rng = np.random.default_rng(0)
    leaves = [x + 0.2 * rng.standard_normal(x.shape, np.float32) for x in leaves]
    return dataclasses.replace(bundle, params=jax.tree.unflatten(tree, leaves))


def test_export_is_a_llava_with_its_processor(tmp_path):
    bundle = redrawn(load_model(ModelSource("tiny:llama", vision=VISION)))
    hub.save(bundle, tmp_path / "out")
    peer, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(peer).__name__ == "LlavaForConditionalGeneration"
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (40, 32, 3)).astype(np.uint8)
    processor = transformers.AutoProcessor.from_pretrained(
        tmp_path / "out", use_fast=False
    )
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    given = processor(images=Image.fromarray(pixels), text=text, return_tensors="np")
    # Ours, of the same message: as many places, and the same pixels.
    said = (Message("user", (Part("image", data=pixels), Part("text", text="what?"))),)
    tokens, placed = render_prompt(bundle.tokenizer, said, bundle.coder)
    np.testing.assert_array_equal(tokens, given["input_ids"][0])
    (waiting,) = placed.media
    assert len(waiting.places) == 16
    medium = waiting.make()
    inputs = bundle.model.inputs(**given)
    (theirs,) = inputs.media.values()
    np.testing.assert_allclose(
        medium.arrays["patches"], theirs["patches"][0, :17], atol=1e-6
    )
    arrays = dict(given)
    expected = pictures.theirs(peer.eval(), arrays)
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    again = hub.load(tmp_path / "out")
    assert pictures.gap(again, arrays, expected) <= 1e-4
    tokens_again, _ = render_prompt(again.tokenizer, said, again.coder)
    np.testing.assert_array_equal(tokens_again, tokens)


def test_text_stays_as_it_was():
    text = load_model(ModelSource("tiny:llama"))
    both = load_model(ModelSource("tiny:llama", vision=VISION))
    ids = np.arange(5, 25)[None]
    old = text.model.logits(text.params, text.model.inputs(input_ids=ids))
    new = both.model.logits(both.params, both.model.inputs(input_ids=ids))
    size = old.shape[-1]
    np.testing.assert_allclose(new[..., :size], old, atol=1e-5)


def test_random_weights_of_a_directory(tmp_path):
    made = load_model(ModelSource("tiny:llama"))
    hub.save(made, tmp_path / "text")
    source = ModelSource(f"random:{tmp_path / 'text'}", vision=VISION)
    one, two = load_model(source, seed=1), load_model(source, seed=2)
    table = made.params["embed"]["text"]["table"]
    assert one.params["embed"]["text"]["table"].shape == table.shape
    assert np.abs(one.params["embed"]["text"]["table"] - table).max() > 0.01
    towers = (x.params["encoders"]["vision"]["position"] for x in (one, two))
    assert np.abs(np.subtract(*towers)).max() > 0.01
    assert (
        one.tokenizer.convert_tokens_to_ids(MARK) == one.hf_config["image_token_index"]
    )
    path = tmp_path / "text" / "config.json"
    assert json.loads(path.read_text())["model_type"] == "llama"
    planned = describe(ModelSource(str(tmp_path / "text"), vision=VISION))
    assert planned.config.encoders[0].num_layers == 2


def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="takes media already"):
        load_model(ModelSource("tiny:llava", vision=VISION))
    with pytest.raises(ValueError, match="clip:SIZE/PATCH/WIDTHxLAYERS"):
        vision_config("clip:30/8/64x2")
    with pytest.raises(ValueError, match="needs a config.json"):
        load_model(ModelSource(f"random:{tmp_path}"))
