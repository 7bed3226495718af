"""Emu3 against transformers: pictures of several sizes as rows of codes."""

import jax
import numpy as np
import pytest
import torch
import transformers

from alanything_jax import hub
from alanything_jax.data.encode import Limits, encode
from alanything_jax.data.template import render_prompt
from alanything_jax.schema import Example, Message, Part, Response
from tests.hub import pictures, vq

IMAGE, ROW_END, FIRST = pictures.IMAGE, 98, 99
IDS = FIRST + np.random.default_rng(0).permutation(vq.CODES)
WORDS = {"<image>": IMAGE, "<|extra_200|>": ROW_END} | {
    f"<|visual token {code:06d}|>": int(token) for code, token in enumerate(IDS)
}


def make(words=WORDS, own_head=False, **special):
    net = dict(
        codebook_size=vq.CODES,
        attn_resolutions=[1],
        hidden_size=64,
        num_attention_heads=2,
    )
    config = transformers.Emu3Config(
        text_config=transformers.Emu3TextConfig(**vq.TEXT | special),
        vq_config=vq.NET | net,
        vocabulary_map=words,
        tie_word_embeddings=special.get("tie_word_embeddings", False) and not own_head,
    )
    return vq.redraw(config, 8)


MARKS = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
    "bos_token": "<|extra_203|>",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role | upper }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}<|im_end|>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def chat(folder, positions=45):
    """A directory with tokenizer and processor; pictures of 5 x 5 codes, if positions
    are 45."""
    words = [*MARKS.values(), "<|extra_200|>"]
    order = sorted(range(vq.CODES), key=lambda code: IDS[code])
    words += [f"<|visual token {code:06d}|>" for code in order]
    tok = vq.tokenizer(words, TEMPLATE, **MARKS)
    model = make(
        tok.get_vocab(), vocab_size=len(tok), max_position_embeddings=positions
    )
    pixels = transformers.Emu3ImageProcessor(
        min_pixels=100, max_pixels=100, spatial_factor=2
    )
    for part in (model, tok, pixels):
        part.save_pretrained(folder)
    return model, tok, pixels


def arrays_of(sizes=((8, 6), (4, 8), (8, 8))):
    """A row of two pictures, one of none padded on the right, one padded on the left."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 90, (3, 60)), np.ones((3, 60), np.int64)
    mask[1, -7:] = mask[2, :3] = 0
    for (row, first), (height, width) in zip(
        ((0, 2), (0, 25), (2, 6)), sizes, strict=True
    ):
        ids[row, first : first + height // 2 * (width // 2 + 1)] = IMAGE
    pixels = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    for picture, (height, width) in zip(pixels, sizes, strict=True):
        picture[:, height:] = picture[:, :, width:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": pixels,
        "image_sizes": np.array(sizes),
    }


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"tie_word_embeddings": True},
        # What the text's config says of it does not count.
        {"tie_word_embeddings": True, "own_head": True},
    ],
)
def test_logits_and_files_equal_transformers(special, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pictures,
        "text_of",
        lambda a: {n: a[n][1:2] for n in ("input_ids", "attention_mask")},
    )
    model, arrays = make(**special), arrays_of()
    bundle, expected = pictures.check(model, arrays, tmp_path)
    pixels, sizes = (
        torch.tensor(arrays.pop(n)) for n in ("pixel_values", "image_sizes")
    )
    ids = model.model.get_image_tokens(pixels, sizes).numpy()
    assert len(np.unique(ids)) > 5 and (ids == ROW_END).sum() == 4 + 2 + 4
    arrays["input_ids"][arrays["input_ids"] == IMAGE] = ids
    assert pictures.gap(bundle, arrays, expected) <= 1e-4


def said(text):
    return Part("text", text=text)


def test_a_square_in_a_chat_is_read_as_the_processor_reads_it(tmp_path):
    _, tok, pixels = chat(tmp_path)
    bundle = hub.load(tmp_path)
    assert bundle.coder.codecs["image"].grid == (5, 5)
    picture = np.random.default_rng(1).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    parts = (Part("image", data=picture), said("what?"))
    ours, _ = render_prompt(tok, [Message("user", parts)], bundle.coder)
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = tok.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    processor = transformers.Emu3Processor(pixels, tok)
    processor.downsample_ratio = 2
    given = processor(picture, text, return_tensors="np")
    batch = bundle.model.inputs(**given)
    np.testing.assert_array_equal(batch.tokens[0], ours)
    assert "5*5<|image token|>" in tok.decode(ours) and len(np.unique(ours)) > 20


def test_of_a_picture_in_an_answer_its_codes_and_its_opener_are_scored(tmp_path):
    _, tok, _ = chat(tmp_path)
    bundle = hub.load(tmp_path)
    picture = Part("image", data=np.full((9, 12, 3), 90, np.uint8))
    answer = Response((Message("assistant", (picture,)),))
    example = Example("1", (Message("user", (said("draw"),)),), (answer,))
    (branch,) = encode(example, tok, Limits(), bundle.coder).branches
    # Opener; "5*5" and a token; five rows with ends; end of frame, end of image; turn.
    rows = ([True] * 5 + [False]) * 5
    assert branch.scored.tolist() == [
        True,
        *[False] * 4,
        *rows,
        False,
        False,
        True,
        False,
    ]
    assert branch.stream.sum() == 25
    back = bundle.coder.part("image", branch.tokens[1:37])
    assert back.data.startswith(b"\x89PNG")


def test_names_of_memory_and_gradients(tmp_path):
    model, arrays = make(), arrays_of()
    expected = pictures.theirs(model, arrays)
    model.save_pretrained(tmp_path)

    def memory(name):
        name = name.replace("text_model.model.", "model.text_model.")
        name = name.replace("text_model.lm_head.", "lm_head.")
        return f"model.{name}" if name.startswith("vqmodel") else name

    pictures.respell(tmp_path, lambda config: config, memory)
    bundle = hub.load(tmp_path)
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
    with pytest.raises(ValueError, match=r"image_sizes \(2, 2\) for 3 pictures"):
        bundle.model.inputs(**arrays | {"image_sizes": arrays["image_sizes"][:2]})
    grads = pictures.gradients(bundle, arrays)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
