"""Chameleon against transformers: pictures as codes, norms behind branches, image logits."""

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.chameleon.image_processing_pil_chameleon import (
    ChameleonImageProcessorPil,
)

from alanything_jax import hub
from alanything_jax.data.byte_tokenizer import CHATML
from alanything_jax.data.encode import Limits, encode
from alanything_jax.data.template import render_prompt
from alanything_jax.models import families
from alanything_jax.models.model import Model
from alanything_jax.schema import Example, Message, Part, Response
from tests.hub import pictures, vq
from tests.models.test_image_codecs import Decoder, shaken

FIRST, IMAGE, SIDE = 9, pictures.IMAGE, 8
# Which id stands for which code: a permutation of 9 .. 40.
IDS = FIRST + np.random.default_rng(0).permutation(vq.CODES)


def word(code):
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(code)) + "Z"


WORDS = {"<racm3:break>": 3, "<eoss>": 4, "<image>": IMAGE} | {
    word(code): int(token) for code, token in enumerate(IDS)
}


def make(words=WORDS, **special):
    net = dict(
        resolution=SIDE, num_embeddings=vq.CODES, embed_dim=8, latent_channels=16
    )
    config = transformers.ChameleonConfig(
        **vq.TEXT | special, vq_config=vq.NET | net, vocabulary_map=words
    )
    return vq.redraw(config, SIDE)


def chat(folder, decoder=True, template=CHATML):
    """A directory with tokenizer, processor and, as Meta's has, the codec's decoder.

    As on the hub, codes lie among the text's ids.
    """
    order = sorted(range(vq.CODES), key=lambda code: IDS[code])
    words = [*map(word, order), "<racm3:break>", "<eoss>", "<image>", "<sep>"]
    tok = vq.tokenizer(words, template, image_token="<image>", boi_token=words[-4])
    model = make(tok.get_vocab(), vocab_size=len(tok) + 5)
    if decoder:
        model.model.vqmodel.decoder = shaken(Decoder(16, (32, 64), blocks=1))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    pixels = ChameleonImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    pixels.save_pretrained(folder)
    return folder, tok, pixels


def theirs(model, arrays):
    """Logits before those of codes are masked."""
    with torch.no_grad():
        given = {n: torch.tensor(a) for n, a in arrays.items()}
        return model.lm_head(model.model(**given).last_hidden_state).numpy()


@pytest.fixture
def unmasked(monkeypatch):
    monkeypatch.setattr(pictures, "theirs", theirs)


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"swin_norm": True, "attention_bias": True, "num_key_value_heads": 4},
        {"tie_word_embeddings": True, "mlp_bias": True},
    ],
    ids=["plain", "swin", "tied"],
)
def test_logits_and_files_equal_transformers(special, tmp_path, unmasked):
    model, arrays = make(**special), pictures.rows(SIDE, 16, 45, IMAGE)
    bundle, expected = pictures.check(model, arrays, tmp_path)
    masked = model(**{n: torch.tensor(a) for n, a in arrays.items()}).logits.detach()
    text = np.setdiff1d(np.arange(131), IDS)
    np.testing.assert_array_equal(masked[..., text], expected[..., text])
    assert (masked[..., IDS] == torch.finfo(torch.float32).min).all()
    # Codes given as ids are the pictures.
    ids = model.get_image_tokens(torch.tensor(arrays.pop("pixel_values")))
    assert len(np.unique(ids)) > 5
    arrays["input_ids"][arrays["input_ids"] == IMAGE] = ids.reshape(-1).numpy()
    assert pictures.gap(bundle, arrays, expected) <= 1e-4


TYPED = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PICTURE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("template", [CHATML, TYPED], ids=["chatml", "typed"])
def test_a_picture_in_a_chat_is_read_as_the_processor_reads_it(template, tmp_path):
    folder, tok, pixels = chat(tmp_path, template=template)
    bundle = hub.load(folder)
    parts = (Part("text", text="see "), Part("image", data=PICTURE))
    ours, _ = render_prompt(tok, [Message("user", parts)], bundle.coder)
    content = [{"type": "text", "text": "see "}, {"type": "image"}]
    chats = [
        {"role": "user", "content": "see <image>" if template == CHATML else content}
    ]
    text = tok.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    processor = transformers.ChameleonProcessor(pixels, tok, image_seq_length=16)
    arrays = processor(
        PICTURE, text, return_for_text_completion=True, add_special_tokens=False
    )
    batch = bundle.model.inputs(**{n: a.numpy() for n, a in arrays.items()})
    np.testing.assert_array_equal(batch.tokens[0], ours)
    assert len(np.unique(ours)) > 20


def test_an_answer_with_a_picture_is_scored_but_for_its_closing_token(tmp_path):
    folder, tok, _ = chat(tmp_path)
    bundle = hub.load(folder)
    assert bundle.model.config.grammar == bundle.coder.grammar
    first, last = bundle.coder.grammar.ranges[1]
    assert bundle.coder.grammar.text == (last, first) and last - first == vq.CODES
    answer = Message(
        "assistant", (Part("image", data=PICTURE), Part("text", text="so"))
    )
    example = Example(
        "1", (Message("user", (Part("text", text="draw"),)),), (Response((answer,)),)
    )
    (branch,) = encode(example, tok, Limits(), bundle.coder).branches
    # Opener, 16 codes, a closing token that is forced, "so", end of turn.
    assert branch.stream.tolist() == [0] + [1] * 16 + [0] * (len(branch.stream) - 17)
    scored = branch.scored[:20]
    assert scored.tolist() == [True] * 17 + [False, True, True]
    codes = branch.tokens[1:17]
    assert ((codes >= first) & (codes < last)).all() and len(np.unique(codes)) > 2
    hub.save(bundle, tmp_path / "out")
    again = hub.load(tmp_path / "out")
    assert again.coder.grammar == bundle.coder.grammar
    np.testing.assert_array_equal(
        again.coder.ids(Part("image", data=PICTURE))[:-1], codes
    )


def test_what_a_config_leaves_out_and_what_it_must_say(tmp_path):
    """The config.json of facebook/chameleon-7b has `rope_theta`."""
    cfg = families.family_of("chameleon").config({"rope_theta": 1e4, "swin_norm": True})
    sizes = (cfg.width, cfg.num_kv_heads, cfg.head_width, cfg.vocab_size, cfg.norm_eps)
    assert sizes == (4096, 32, 128, 65536, 1e-5) and cfg.norm_place == "after"
    make(words={"<image>": 95}).save_pretrained(tmp_path)
    # As files of transformers 4 may, in place of height and width.
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 6}')
    bundle = hub.load(tmp_path)
    codec = bundle.model.codes.codec
    assert (codec.height, codec.width) == (6, 6)
    with pytest.raises(ValueError, match="no vocabulary_map that says"):
        bundle.model.inputs(**pictures.rows(SIDE, 16, 45, IMAGE))


def test_gradients_are_finite_and_pictures_must_fit(tmp_path):
    make().save_pretrained(tmp_path)
    bundle, arrays = hub.load(tmp_path), pictures.rows(SIDE, 16, 45, IMAGE)
    grads = pictures.gradients(bundle, arrays)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads["layers"]["attn"]["q_norm"]["bias"]).max() > 0
    with pytest.raises(ValueError, match="64 placeholders .* of .16, 16, 16"):
        bundle.model.inputs(**arrays | {"pixel_values": arrays["pixel_values"][:3]})
    with pytest.raises(ValueError, match="load the model by hub.load"):
        Model(bundle.model.family, bundle.model.config).inputs(**arrays)
