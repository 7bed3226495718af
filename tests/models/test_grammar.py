"""Streams and ranges by hand; what the sampler may take is what the trainer scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alanything_jax.models import grammar
from alanything_jax.models.grammar import Block, Grammar
from alanything_jax.models.logps import masked_logits

# Text is 0 .. 9. Images are two codes of 10 .. 13; tunes one to three codes of 14 .. 18
# and the stop code 19; clips one or two frames of two codes of 20, 21, and the stop 22.
IMAGE = Block("image", 3, 10, 4, 2)
AUDIO = Block("audio", 4, 14, 5, 3, stop=True)
VIDEO = Block("video", 5, 20, 2, 4, stop=True, frame=2)
G = Grammar(10, (IMAGE, AUDIO, VIDEO))


def streams(*tokens):
    stream, forced = G.streams(np.array(tokens, np.int32))
    return stream.tolist(), np.flatnonzero(forced).tolist()


def test_ranges_by_hand():
    assert G.vocab_size == 23
    assert G.ranges == (
        (0, 10),
        (10, 14),
        (10, 14),
        (14, 19),
        (14, 20),
        (20, 22),
        (20, 23),
    )
    assert Grammar(7).vocab_size == 7 and Grammar(7).ranges == ((0, 7),)
    assert G.block("audio") is AUDIO
    with pytest.raises(ValueError, match="no smell; it has .'image', 'audio', 'video'"):
        G.block("smell")


def test_the_picture_in_the_docstring():
    assert streams(1, 4, 15, 17, 19, 2) == ([0, 0, 3, 4, 4, 0], [])


def test_the_stop_is_forced_only_at_full_length():
    assert streams(4, 15, 17, 14, 19) == ([0, 3, 4, 4, 4], [4])
    assert streams(4, 15, 19) == ([0, 3, 4], [])


def test_a_block_of_fixed_length_then_text_or_another_block():
    assert streams(3, 10, 13, 1, 3, 11, 11) == ([0, 1, 1, 0, 0, 1, 1], [])
    assert streams(3, 10, 13, 4, 18, 19) == ([0, 1, 1, 0, 3, 4], [])
    assert streams() == ([], [])


def test_whole_frames_alone_may_stop():
    assert streams(5, 20, 21, 22) == ([0, 5, 5, 6], [])
    assert streams(5, 20, 21, 20, 20, 22, 9) == ([0, 5, 5, 6, 5, 6, 0], [5])


@pytest.mark.parametrize(
    "tokens, match",
    [
        ((1, 12), "media code 12 stands outside"),
        ((19,), "media code 19 stands outside"),
        ((3, 10, 1), "an image block has 1 codes"),
        ((3, 10), "an image block has 1 codes"),
        ((3, 10, 11, 12), "media code 12 stands outside"),
        ((3, 14, 14), "an image block has 0 codes"),
        ((4, 15, 17), "audio block of 2 codes does not end with its stop"),
        ((4, 19), "audio block of 0 codes"),
        ((4, 15, 15, 15, 15, 19), "audio block of 3 codes"),
        ((5, 20, 22), "video block of 1 codes .* whole frames of 2"),
        ((5, 20, 20, 20, 22), "video block of 3 codes"),
    ],
)
def test_what_the_grammar_does_not_allow(tokens, match):
    with pytest.raises(ValueError, match=match):
        streams(*tokens)


def test_a_block_holds_whole_frames():
    with pytest.raises(ValueError, match="no whole number of frames of 2"):
        Block("video", 5, 20, 2, 3, stop=True, frame=2)
    with pytest.raises(ValueError, match="no whole number"):
        Block("image", 3, 10, 4, 0)


def walk(g, rng, size):
    """A random valid row: `size` steps, then on to the end of its block.

    Returns tokens [n] and what `allowed` said of each, [n, 2].
    """
    state, tokens, ranges = grammar.initial(1), [], []
    allowed = jax.jit(grammar.allowed, static_argnums=0)
    advance = jax.jit(grammar.advance, static_argnums=0)
    openers = [block.open_id for block in g.blocks]
    while len(tokens) < size or int(state.inside[0]):
        low, high = (int(x[0]) for x in allowed(g, state))
        token = int(rng.integers(low, high))
        if low == 0 and rng.random() < 0.4:
            token = int(rng.choice(openers))
        tokens.append(token)
        ranges.append((low, high))
        state = advance(g, state, jnp.array([token], jnp.int32))
    return np.array(tokens, np.int32), ranges


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_allowed_and_advance_agree_with_streams(seed, size):
    tokens, ranges = walk(G, np.random.default_rng(seed), size)
    stream, forced = G.streams(tokens)
    for token, s, f, (low, high) in zip(tokens, stream, forced, ranges, strict=True):
        start, end = G.ranges[s]
        # A forced stop is one id of its stream's range.
        assert (low, high) == ((end - 1, end) if f else (start, end))
        assert low <= token < high and f == (high - low == 1)


def test_rows_are_independent():
    """Row 0 is in text, 1 mid-image, 2 at a full tune, 3 after a clip's first frame."""
    state = grammar.State(jnp.array([0, 1, 2, 3]), jnp.array([0, 1, 3, 2]))
    low, high = grammar.allowed(G, state)
    assert low.tolist() == [0, 10, 19, 20] and high.tolist() == [10, 14, 20, 23]
    after = grammar.advance(G, state, jnp.array([5, 11, 19, 21]))
    assert after.inside.tolist() == [3, 0, 0, 3]
    assert after.count.tolist() == [0, 0, 0, 3]
    low, high = grammar.allowed(G, after)
    assert low.tolist() == [20, 0, 0, 20] and high.tolist() == [22, 10, 10, 22]


def test_a_grammar_is_hashable_so_jit_may_hold_it():
    again = Grammar(10, tuple(dataclasses.replace(b) for b in G.blocks))
    assert hash(G) == hash(again) and again == G


# Text is all ids but 4 .. 7. A picture: 1, two rows of two codes and 2, then 9 and 8.
ROWS = Block("image", 3, 4, 4, 4, before=(1,), after=(9, 8), row=2, row_end=2)
ROUND = Grammar(12, (ROWS,))


def test_forced_ids_and_text_round_the_codes_by_hand():
    assert ROWS.template.tolist() == [1, -1, -1, 2, -1, -1, 2, 9, 8] and ROWS.total == 9
    assert ROUND.ranges == ((8, 4), (4, 8), (4, 8)) and ROUND.vocab_size == 12
    tokens = [11, 3, 1, 4, 7, 2, 6, 6, 2, 9, 8, 0]
    stream, forced = ROUND.streams(np.array(tokens, np.int32))
    assert stream.tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert np.flatnonzero(forced).tolist() == [2, 5, 8, 9, 10]
    for wrong in ([5], tokens[:-2], [3, 1, 4, 4, 4], [3, 4, 4, 4, 4]):
        with pytest.raises(ValueError, match="media code 5 stands|an image block has"):
            ROUND.streams(np.array(wrong, np.int32))
    with pytest.raises(ValueError, match="behind the text"):
        Grammar(12, (ROWS, dataclasses.replace(AUDIO, start=12)))
    with pytest.raises(ValueError, match="whole number of rows of 3"):
        dataclasses.replace(ROWS, row=3)
    with pytest.raises(ValueError, match="no other ids"):
        dataclasses.replace(AUDIO, after=(1,))


def test_the_sampler_is_led_through_forced_ids():
    state, seen = grammar.after(ROUND, jnp.array([3, 11])), []
    for token in (1, 5, 6, 2, 4, 4, 2, 9, 8):
        low, high = grammar.allowed(ROUND, state)
        seen.append((int(low[0]), int(high[0])))
        assert (int(low[1]), int(high[1])) == (8, 4)
        state = grammar.advance(ROUND, state, jnp.array([token, 0]))
    codes = (4, 8)
    ends = [(2, 3), codes, codes, (2, 3), (9, 10), (8, 9)]
    assert seen == [(1, 2), codes, codes, *ends]
    assert state.inside.tolist() == [0, 0] and state.count.tolist() == [0, 0]


def test_logits_outside_a_range_that_goes_round():
    z = jnp.zeros((2, 5))
    kept = masked_logits(z, jnp.array([8, 5]), jnp.array([4, 8]), start=3) == 0
    assert kept.tolist() == [
        [True, False, False, False, False],
        [False, False, True] + [True] * 2,
    ]
