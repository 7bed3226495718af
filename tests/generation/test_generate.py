"""Decoding against transformers, against the trainer's log-probs, and alone = in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alanything_jax import generate, hub
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.sampler import Sampling, sample
from alanything_jax.hub.source import tiny_bundle
from alanything_jax.models import decoder, heads
from tests import toys
from tests.hub import oracles

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 99, size).astype(np.int32) for size in (5, 11, 3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    theirs = oracles.make("mistral")
    theirs.save_pretrained(folder)
    return theirs, hub.load(folder)


def ours(bundle, prompts, **options):
    options = {"max_new_tokens": 12, "sampling": Sampling(0.0)} | options
    return generate_tokens(bundle.params, bundle.model.config, prompts, **options)


def test_greedy_equals_transformers(model):
    theirs, bundle = model
    for prompt, done in zip(PROMPTS, ours(bundle, PROMPTS), strict=True):
        out = theirs.generate(
            torch.tensor(prompt[None].astype(np.int64)),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out[0, len(prompt) :].tolist() == done.tokens.tolist()
        assert not done.finished


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_equal_the_trainers(model, temperature):
    _, bundle = model
    cfg = bundle.model.config
    done = ours(bundle, PROMPTS, sampling=Sampling(temperature), seed=3)
    items = [
        EncodedGroup(str(n), p, (Branch(c.tokens, np.ones(len(c.tokens), bool)),))
        for n, (p, c) in enumerate(zip(PROMPTS, done, strict=True))
    ]
    (batch,), (rows,) = toys.pack(items, rows=1, row_tokens=64, numbers=())
    states = decoder.hidden(bundle.params, cfg, batch)
    logps = heads.token_logps(
        bundle.params, cfg, states, batch, temperature=temperature or 1.0, chunk=16
    )
    from alanything_jax.data import packing

    taken = packing.take(items, rows, np.asarray(logps))
    for n, completion in enumerate(done):
        np.testing.assert_allclose(taken[n, 0], completion.logps, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(model):
    _, bundle = model
    sampling = Sampling(1.0, top_p=0.9)
    together = ours(bundle, PROMPTS, sampling=sampling, seed=5)
    other = [PROMPTS[0], PROMPTS[0], PROMPTS[0]]
    assert ours(bundle, other, sampling=sampling, seed=5)[0].tokens.tolist() == (
        together[0].tokens.tolist()
    )


def test_end_of_text_stops_a_row(model):
    _, bundle = model
    free = ours(bundle, PROMPTS)
    stop = int(free[0].tokens[4])
    first = free[0].tokens.tolist().index(stop)
    done = ours(bundle, PROMPTS, eos_ids=[stop])
    assert (
        done[0].finished
        and done[0].tokens.tolist() == free[0].tokens[: first + 1].tolist()
    )


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jnp.repeat(logits, 4000, axis=0)
    tokens, logps = sample(many, keys, Sampling(1.0))
    share = np.bincount(np.asarray(tokens), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(logps, many[0][tokens], atol=1e-5)
    nucleus, _ = sample(many, keys, Sampling(1.0, top_p=0.7))
    assert set(np.asarray(nucleus)) == {0, 1}
    top, _ = sample(many, keys, Sampling(1.0, top_k=1))
    assert set(np.asarray(top)) == {0}


def test_stop_strings_and_stop_tokens():
    """Text ends before the string, tokens with the one that completed it."""
    bundle = tiny_bundle("llama")
    tokenizer = bundle.tokenizer
    options = {"max_new_tokens": 30, "sampling": Sampling(1.0), "seed": 1}
    ((free,), (other,)) = generate(bundle, ["hi", "you"], **options)
    said = [tokenizer.decode([t], skip_special_tokens=True) for t in free.tokens]
    # Two whole characters next to each other, not in the first chunk.
    at = next(n for n in range(9, 28) if all(len(c) == 1 for c in said[n : n + 2]))
    stop = "".join(said[at : at + 2])
    ((cut,), (same,)) = generate(bundle, ["hi", "you"], stop=(stop, "\0\0"), **options)
    assert cut.finished and cut.text == free.text[: free.text.index(stop)]
    assert cut.tokens.tolist() == free.tokens[: cut.num_tokens].tolist()
    whole, before = (
        tokenizer.decode(cut.tokens[:n], skip_special_tokens=True)
        for n in (cut.num_tokens, cut.num_tokens - 1)
    )
    assert whole.endswith(stop) and stop not in before
    if stop not in other.text:
        assert same.tokens.tolist() == other.tokens.tolist()

    name = tokenizer.convert_ids_to_tokens(int(free.tokens[4]))
    ((ended,),) = generate(bundle, ["hi"], stop_tokens=(name,), **options)
    first = free.tokens.tolist().index(free.tokens[4])
    assert ended.finished and ended.tokens.tolist() == free.tokens[: first + 1].tolist()
    with pytest.raises(ValueError, match="stop token '<.nope.>' is not in the tok"):
        generate(bundle, ["hi"], stop_tokens=("<|nope|>",))


def test_text_in_text_out_and_errors():
    bundle = tiny_bundle("llama")
    (answers,) = generate(bundle, ["hi"], max_new_tokens=5, num_samples=2)
    assert len(answers) == 2 and answers[0].num_tokens <= 5
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="exceed the model's 1024 positions"):
        generate(bundle, ["hi"], max_new_tokens=1024)
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        Sampling(-1.0)
    bundle.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no tokenizer with a chat template"):
        generate(bundle, ["hi"])
