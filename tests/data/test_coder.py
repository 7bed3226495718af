"""Any mixture of parts to one stream of tokens, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax.data import coder as coders
from alanything_jax.data.encode import BadRecord, Limits, encode
from alanything_jax.data.media import MediaError
from alanything_jax.data.template import render, render_prompt
from alanything_jax.models.families import anything
from alanything_jax.playground import lexicon, oracle, tasks
from alanything_jax.schema import Example, Message, Part, Response
from tests import toys

TOK = lexicon.tokenizer()
CODER = anything.make_coder(TOK, 0, lexicon.CODECS)
G = CODER.grammar
MAGIC = {"image": b"\x89PNG", "audio": b"RIFF", "video": b"GIF8"}


def text(said):
    return Part("text", text=said)


def media(kind, seed=0, files=False):
    """A random medium of the playground."""
    rng, world = np.random.default_rng(seed), oracle.WORLDS[kind]
    return oracle.part(kind, world.realise(world.sample(rng), rng), files)


def test_expand_by_hand():
    tokens, origin = coders.expand(np.array([5, 3, 6]), {3: [np.array([3, 90, 91])]})
    assert tokens.tolist() == [5, 3, 90, 91, 6] and origin.tolist() == [0, 1, 1, 1, 2]
    codes = {4: [np.array([4, 80, 81])], 3: [np.array([3, 90]), np.array([3, 91])]}
    tokens, origin = coders.expand(np.array([3, 4, 7, 3]), codes)
    assert tokens.tolist() == [3, 90, 4, 80, 81, 7, 3, 91]
    assert origin.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    tokens, origin = coders.expand(np.array([1, 2]), {3: []})
    assert tokens.tolist() == [1, 2] and origin.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"2 placeholders \(token 3\) for 1 media"):
        coders.expand(np.array([3, 3]), {3: [np.array([90])]})


def test_content_puts_placeholders_and_refuses_those_in_text():
    marks = CODER.placeholders
    message = Message("user", (text("draw "), media("image"), text(" now")))
    assert coders.content(message, marks) == "draw <|image|> now"
    with pytest.raises(ValueError, match="'see <|image|>' holds a placeholder"):
        coders.content(Message("user", (text("see <|image|>"),)), marks)
    assert coders.content(Message("user", (text("see <|image|>"),)), {}) == (
        "see <|image|>"
    )
    with pytest.raises(ValueError, match="a user message holds audio, .* text, image"):
        coders.content(Message("user", (media("audio"),)), {"image": marks["image"]})


def test_ids_by_hand():
    image, audio = G.block("image"), G.block("audio")
    codes = np.arange(16) % image.size
    assert CODER.ids(oracle.part("image", codes)).tolist() == (
        (image.start + codes).tolist()
    )
    tune = oracle.part("audio", np.array([6, 9, 6]))
    assert CODER.ids(tune).tolist() == [
        audio.start + 6,
        audio.start + 9,
        audio.start + 6,
        audio.start + audio.size,
    ]


KINDS = st.lists(
    st.sampled_from(["text", "image", "audio", "video"]), min_size=1, max_size=6
).filter(lambda kinds: "texttext" not in "".join(kinds))


@settings(max_examples=20, deadline=None)
@given(KINDS, st.integers(0, 1000), st.booleans())
def test_every_mixture_goes_to_tokens_and_back(kinds, seed, files):
    said = "two red circles left"
    parts = tuple(
        text(said) if kind == "text" else media(kind, seed + n, files)
        for n, kind in enumerate(kinds)
    )
    chat = (Message("user", (text("draw"),)), Message("assistant", parts))
    rendered = render(TOK, chat, coder=CODER)
    back = coders.parts(rendered.tokens[rendered.first_header :], TOK, CODER)
    assert [part.kind for part in back] == kinds
    for one, other in zip(parts, back, strict=True):
        if one.kind == "text":
            assert other.text == said
        else:
            assert other.data.startswith(MAGIC[one.kind])
            assert CODER.ids(one).tolist() == CODER.ids(other).tolist()


def test_media_in_a_prompt():
    chat = (Message("user", (text("describe it "), media("image"))),)
    tokens, _ = render_prompt(TOK, chat, CODER)
    said = TOK.convert_ids_to_tokens(tokens[:4].tolist())
    assert said == ["<|user|>", "describe", "it", "<|image|>"]
    assert tokens[4:20].tolist() == CODER.ids(media("image")).tolist()
    assert TOK.convert_ids_to_tokens(tokens[20:].tolist()) == [
        "<|end|>",
        "<|assistant|>",
    ]


def test_broken_blocks_are_left_out():
    red = TOK.convert_tokens_to_ids("red")

    def kinds(*pieces):
        parts = coders.parts(np.concatenate(pieces).astype(np.int32), TOK, CODER)
        return [part.text if part.kind == "text" else part.kind for part in parts]

    openers = {block.kind: [block.open_id] for block in G.blocks}
    image, tune = CODER.ids(media("image")), CODER.ids(media("audio"))
    assert kinds([red], openers["image"], image[:15]) == ["red"]
    assert kinds([red], openers["image"], image, [red]) == ["red", "image", "red"]
    assert kinds([red], openers["audio"], tune[:-1]) == ["red"]
    assert kinds([red], openers["audio"], tune) == ["red", "audio"]
    assert kinds([red], openers["audio"], tune[-1:]) == ["red"]
    assert kinds(openers["audio"]) == [""]
    assert kinds([red], openers["video"]) == ["red"]


def test_without_a_coder_all_is_text():
    red = TOK.convert_tokens_to_ids("red")
    (part,) = coders.parts(np.array([red, red]), TOK, None)
    assert part == Part("text", text="red red")


def test_media_that_do_not_fit():
    tune = media("audio")
    with pytest.raises(MediaError, match="audio at 16000 Hz; the codec takes 8000"):
        CODER.ids(Part("audio", data=tune.data, meta={"rate": 16000}))
    with pytest.raises(ValueError, match="is no tune"):
        CODER.ids(Part("audio", data=np.zeros(1200, np.float32)))
    with pytest.raises(ValueError, match=r"the image is \(1, 8, 8, 3\)"):
        CODER.ids(Part("image", data=np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match="differs from every painted one"):
        CODER.ids(Part("image", data=np.zeros((64, 64, 3), np.uint8)))
    pictures = anything.make_coder(lexicon.tokenizer(), 0, [lexicon.PICTURE])
    with pytest.raises(ValueError, match="the model has no audio; it has .'image'"):
        pictures.ids(tune)
    with pytest.raises(BadRecord, match="takes text, image only"):
        encode(answered(tune), TOK, Limits(), pictures)


def answered(*parts):
    """One prompt with one answer."""
    prompt = (Message("user", (text("play"),)),)
    return Example("e", prompt, (Response((Message("assistant", parts),)),))


def test_a_full_tune_ends_without_a_choice_and_that_is_not_scored():
    full = oracle.part("audio", np.array([6, 8, 10, 12, 6, 8, 10, 12]))
    (branch,) = encode(answered(full), TOK, Limits(), CODER).branches
    # The opener, the first code, seven that may be the stop, the stop, end of turn.
    assert branch.stream.tolist() == [0, 3, *[4] * 8, 0]
    assert branch.scored.tolist() == [True] * 9 + [False, True]
    short = oracle.part("audio", np.array([6, 8]))
    (branch,) = encode(answered(short), TOK, Limits(), CODER).branches
    assert branch.stream.tolist() == [0, 3, 4, 4, 0] and branch.scored.all()


def test_an_answer_without_text_is_not_empty():
    for kind in MAGIC:
        group = encode(answered(media(kind)), TOK, Limits(), CODER)
        assert group.branches[0].scored.sum() > 3
    with pytest.raises(BadRecord, match="empty after templating"):
        encode(answered(text(" ")), TOK, Limits(), CODER)


def test_playground_pairs_as_groups_and_packed():
    examples = list(tasks.pairs(2 * len(tasks.TASKS), seed=3))
    groups = [encode(e, TOK, Limits(), CODER) for e in examples]
    for group in groups:
        for branch in group.branches:
            stream, forced = G.streams(np.concatenate([group.prompt, branch.tokens]))
            size = len(group.prompt)
            assert group.prompt_stream.tolist() == stream[:size].tolist()
            assert branch.stream.tolist() == stream[size:].tolist()
            assert branch.scored.tolist() == (~forced[size:]).tolist()
    batches, planned = toys.pack(groups, rows=4, row_tokens=256, numbers=())
    seen = 0
    for batch, rows in zip(batches, planned, strict=True):
        stream, tokens = np.asarray(batch.stream), np.asarray(batch.tokens)
        taken = toys.packing.take(groups, rows, stream)
        for (g, b), values in taken.items():
            assert values.tolist() == groups[g].branches[b].stream.tolist()
        for r, row in enumerate(rows):
            for number, piece in enumerate(row, start=1):
                here = (batch.group[r] == number) & (batch.branch[r] == 0)
                wanted = groups[piece.group]
                assert stream[r, here].tolist() == wanted.prompt_stream.tolist()
                assert tokens[r, here].tolist() == wanted.prompt.tolist()
                seen += 1
        ranges = np.array(G.ranges)[stream]
        scored = np.asarray(batch.scored)
        inside = (tokens >= ranges[..., 0]) & (tokens < ranges[..., 1])
        assert inside[scored].all()
    assert seen == len(groups)
