"""Pictures out: Janus by its own head, code for code as transformers; Chameleon and Emu3 by
their grammar, with the log-probs that a trainer computes."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from alanything_jax import hub
from alanything_jax.cli.main import main
from alanything_jax.data import packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.generation import images
from alanything_jax.generation.generate import encode_prompt, generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models import decoder, heads
from alanything_jax.schema import Message, Part
from tests import toys
from tests.hub import test_chameleon, test_emu3, test_janus

WORDS = ("draw a red kite", "a cat", "so many words about one small picture")


def pixels(part):
    return np.asarray(Image.open(io.BytesIO(part.data)))


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    """transformers' model, our bundle, its folder, and prompts with start and opener."""
    folder = tmp_path_factory.mktemp("janus")
    model, tok, _ = test_janus.chat(folder)
    bundle = hub.load(folder)
    begin = images.opener(bundle)
    prompts = [np.append(encode_prompt(bundle, words)[0], begin) for words in WORDS]
    assert all(p[0] == tok.bos_token_id for p in prompts)
    return model, bundle, folder, prompts


def padded(prompts, pad):
    """Padded on the left, as transformers wants it, and the mask."""
    width = max(map(len, prompts))
    rows = [np.pad(p, (width - len(p), 0), constant_values=pad) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(np.array(rows)).long(), torch.tensor(mask)


@torch.no_grad()
def test_janus_draws_as_transformers_does(janus):
    model, bundle, _, prompts = janus
    tok = bundle.tokenizer
    ids, mask = padded(prompts, tok.pad_token_id)
    begin = {"boi_token_id": images.opener(bundle)}
    model.generation_config.generation_kwargs = begin
    theirs = model.generate(
        ids,
        attention_mask=mask,
        generation_mode="image",
        do_sample=False,
        guidance_scale=3.0,
        bos_token_id=tok.bos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    ours = images.paint(bundle, prompts, sampling=Sampling(0.0), guidance=3.0)
    codes = np.stack([item.tokens for item in ours])
    np.testing.assert_array_equal(codes, theirs)
    assert len(np.unique(codes)) > 6
    # The words matter.
    assert len({tuple(row) for row in codes.tolist()}) == 3

    # Log-probs of what was drawn: all at once, rows before their twins.
    kept = [tok.bos_token_id, images.opener(bundle)]
    twins = torch.where(torch.isin(ids, torch.tensor(kept)), ids, tok.pad_token_id)
    both = model.get_input_embeddings()(torch.cat([ids, twins]))
    drawn = model.prepare_embeddings_for_image_generation(torch.cat([theirs, theirs]))
    steps = torch.cat([both, drawn[:, :-1]], 1)
    seen = torch.cat([mask, torch.ones(3, 8)], 1).repeat(2, 1)
    place = (seen.cumsum(1) - 1).clamp(min=0).long()
    states = model.model.language_model(
        inputs_embeds=steps, attention_mask=seen, position_ids=place
    ).last_hidden_state[:, -9:]
    given, free = model.model.generation_head(states).split(3)
    logps = (free + 3.0 * (given - free)).log_softmax(-1)
    logps = logps.gather(-1, theirs[..., None])[..., 0]
    np.testing.assert_allclose(
        np.stack([item.logps for item in ours]), logps, atol=1e-4
    )

    pictures = model.decode_image_tokens(theirs).numpy()
    for item, want in zip(ours, pictures, strict=True):
        got = pixels(images.picture(bundle, item.tokens)) / 127.5 - 1
        inside = np.abs(want) < 0.99
        assert np.abs(got - want)[inside].max() < 1 / 255


def test_guidance_by_hand():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(images.guided(logits, 3.0), [[3.0, 2.0], [7.0, -2.0]])
    np.testing.assert_allclose(images.guided(logits, 1.0), logits[:2])
    tokens = np.array([[7, 3, 4, 9, 1]])
    assert images.twins(tokens, [7, 9], 1).tolist() == [[7, 1, 1, 9, 1]]


def test_rows_draw_their_own_randomness(janus):
    _, bundle, _, prompts = janus
    one = images.paint(bundle, prompts, sampling=Sampling(1.0), seed=4)
    two = images.paint(
        bundle, prompts[:2] + prompts[:1], sampling=Sampling(1.0), seed=4
    )
    assert [o.tokens.tolist() for o in one[:2]] == [t.tokens.tolist() for t in two[:2]]
    other = images.paint(bundle, prompts, sampling=Sampling(1.0), seed=5)
    assert one[0].tokens.tolist() != other[0].tokens.tolist()


def test_the_command_writes_pictures_of_rows_that_ask_for_them(janus, tmp_path, capsys):
    rows = [
        {"prompt": WORDS[0], "output": "image"},
        {"prompt": WORDS[1]},
        {"prompt": WORDS[2], "output": "image"},
    ]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["generate", "--model", str(janus[2]), "--prompt", str(source)]
    argv += ["--out", str(out), "--max-new-tokens", "4", "--guidance", "3"]
    assert main(argv) == 0
    assert f"media in {tmp_path / 'out_media'}/" in capsys.readouterr().out.replace(
        "\n", " "
    )
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["responses"][0]["media"]) for row in written] == [1, 0, 1]
    expected = images.paint(
        janus[1], [janus[3][0]], sampling=Sampling(0.0), guidance=3.0
    )
    want = pixels(images.picture(janus[1], expected[0].tokens))
    (file,) = written[0]["responses"][0]["media"]
    np.testing.assert_array_equal(np.asarray(Image.open(file["file"])), want)


def test_what_cannot_be_drawn(janus):
    _, bundle, _, prompts = janus
    with pytest.raises(ValueError, match="no audio; it has text"):
        generate(bundle, ["a song"], output="audio")
    with pytest.raises(ValueError, match="300 tokens and a picture of 9 codes exceed"):
        images.paint(bundle, [np.resize(prompts[0], 300)])
    picture = Part("image", data=np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="holds media that an encoder reads"):
        generate(bundle, [[Message("user", (picture,))]], output="image")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(test_chameleon, id="chameleon"),
        pytest.param(test_emu3, id="emu3", marks=pytest.mark.slow),
    ],
)
def test_pictures_through_the_grammar(family, tmp_path):
    if family is test_emu3:
        family.chat(tmp_path, positions=400)
    else:
        family.chat(tmp_path)
    bundle = hub.load(tmp_path)
    cfg = bundle.model.config
    (block,) = cfg.grammar.blocks
    assert block.row == (17 if family is test_emu3 else 0)
    answers = generate(
        bundle, WORDS[:2], output="image", sampling=Sampling(1.0), num_samples=2
    )
    groups = []
    for words, some in zip(WORDS, answers, strict=False):
        prompt, _ = encode_prompt(bundle, words)
        for answer in some:
            (part,) = answer.response.messages[0].parts
            ids = answer.tokens[1:]
            assert len(ids) == block.total == block.fits(ids)
            codec, order = bundle.coder.codecs["image"], bundle.coder.order["image"]
            codes = [
                order.tolist().index(i - block.start) for i in ids[block.template < 0]
            ]
            want = codec.decode(bundle.coder.params["image"], np.array(codes))
            np.testing.assert_array_equal(pixels(part), want)
            stream, forced = cfg.grammar.streams(
                np.concatenate([prompt, answer.tokens])
            )
            size = len(prompt)
            forced[size] = True
            branch = Branch(answer.tokens, ~forced[size:], stream[size:])
            name = str(len(groups))
            groups.append(
                EncodedGroup(name, prompt, (branch,), prompt_stream=stream[:size])
            )
    batches, planned = toys.pack(groups, rows=4, row_tokens=512, numbers=())
    score = jax.jit(
        lambda batch: heads.token_logps(
            bundle.params, cfg, decoder.hidden(bundle.params, cfg, batch), batch
        )
    )
    flat, compared = [a for some in answers for a in some], 0
    for batch, rows in zip(batches, planned, strict=True):
        for (n, _), logps in packing.take(
            groups, rows, np.asarray(score(batch))
        ).items():
            np.testing.assert_allclose(logps.sum(), flat[n].logp, rtol=1e-5)
            compared += 1
    assert compared == 4 and flat[0].tokens.tolist() != flat[1].tokens.tolist()


def test_chameleon_as_transformers_has_it_cannot_draw(tmp_path):
    test_chameleon.chat(tmp_path, decoder=False)
    with pytest.raises(ValueError, match="no decoder, as transformers' Chameleon"):
        generate(str(tmp_path), WORDS[:1], output="image")
