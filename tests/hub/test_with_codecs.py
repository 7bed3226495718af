"""A text decoder made any-to-any: its text stays, media get rows, and it goes out and in."""

import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.generation.generate import generate
from alanything_jax.hub.source import ModelSource, load_model, with_codecs
from alanything_jax.models import codecs
from alanything_jax.models.codecs import vq
from alanything_jax.playground import lexicon, oracle
from alanything_jax.schema import Message, Part

PATH = "tiny:llama"


def test_text_logits_stay_and_media_are_written_and_read_back(tmp_path):
    text = load_model(ModelSource(PATH))
    both = load_model(ModelSource(PATH, codecs=("playground",)))
    ids = np.arange(5, 25)[None]
    old = text.model.logits(text.params, text.model.inputs(input_ids=ids))
    new = both.model.logits(both.params, both.model.inputs(input_ids=ids))
    size = text.model.config.vocab_size
    np.testing.assert_allclose(new[..., :size], old, atol=1e-5)
    picture = oracle.part("image", np.arange(16) % 13)
    ids = both.coder.ids(picture)
    assert ids.min() >= size and len(ids) == 16
    np.testing.assert_array_equal(both.coder.ids(both.coder.part("image", ids)), ids)
    hub.save(both, tmp_path / "out")
    again = hub.load(tmp_path / "out")
    assert again.coder.grammar == both.coder.grammar
    (answers,) = generate(
        again,
        [(Message("user", (Part("text", text="draw"), picture)),)],
        max_new_tokens=4,
    )
    assert answers[0].response.messages
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert peer.get_input_embeddings().weight.shape[0] == both.hf_config["vocab_size"]


def test_a_trained_codec_comes_from_its_directory(tmp_path):
    codec = vq.VQ()
    params = {"some/kernel": np.ones((2, 2), np.float32)}
    codecs.save(tmp_path, codec, params)
    bundle = load_model(ModelSource(PATH, codecs=(str(tmp_path),)))
    assert bundle.coder.codecs == {codec.kind: codec}
    np.testing.assert_array_equal(bundle.coder.params[codec.kind]["some/kernel"], 1)


def test_what_cannot_be(tmp_path):
    bundle = load_model(ModelSource(PATH))
    with pytest.raises(ValueError, match="give one of a kind"):
        with_codecs(bundle, ("playground", "playground"))
    with pytest.raises(FileNotFoundError, match="holds no trained codec"):
        with_codecs(bundle, (str(tmp_path),))
    ready = load_model(ModelSource("playground:48x1"))
    assert len(ready.coder.codecs) == len(lexicon.CODECS)
    with pytest.raises(ValueError, match="any-to-any model already"):
        with_codecs(ready, ("playground",))
