"""Media in packed rows: every family's packed groups give what each gives alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alanything_jax.data import packing
from alanything_jax.data.encode import Limits, encode
from alanything_jax.hub.tiny import MEDIA, tiny_bundle
from alanything_jax.models import decoder, heads
from alanything_jax.schema import Example, Message, Part, Response
from alanything_jax.training.prepare import media_plans
from alanything_jax.training.step import Compute


def medium(kind, rng):
    """Of unequal sizes: families must not depend on one."""
    if kind == "audio":
        size = int(rng.integers(3000, 20_000))
        samples = rng.normal(size=size).astype(np.float32)
        return Part(kind, data=0.1 * samples, meta={"rate": 16_000})
    shape = tuple(int(s) for s in rng.integers(8, 40, 2))
    if kind == "video":
        frames = rng.integers(0, 256, (4, *shape, 3), np.uint8)
        return Part(kind, data=frames, meta={"fps": 2.0})
    return Part(kind, data=rng.integers(0, 256, (*shape, 3), np.uint8))


def text(said):
    return Part("text", text=said)


def example(number, parts, responses):
    said = [Response((Message("assistant", (text(r),)),)) for r in responses]
    return Example(str(number), (Message("user", tuple(parts)),), tuple(said))


def examples(kinds, seed=0):
    """Media before, between and behind text; two at once; none; in a later turn."""
    rng = np.random.default_rng(seed)
    first, last = kinds[0], kinds[-1]
    later = (
        Message("assistant", (text("which?"),)),
        Message("user", (text("this: "), medium(first, rng))),
        Message("assistant", (text("a thing"),)),
    )
    chat = Example("turns", (Message("user", (text("look"),)),), (Response(later),))
    return [
        example(0, [medium(first, rng), text("what?")], ["one", "another"]),
        example(1, [text("and "), medium(last, rng), text("?")], ["yes", "no, not"]),
        example(2, [text("say it")], ["it", "that"]),
        example(3, [medium(k, rng) for k in (*kinds, first)], ["all", "of", "it"]),
        chat,
    ]


@functools.partial(jax.jit, static_argnums=0)
def logps(config, params, batch):
    hidden = decoder.hidden(params, config, batch, backend="blockwise", block=32)
    return heads.token_logps(params, config, hidden, batch, chunk=16)


def per_branch(bundle, groups, media):
    """(group, branch) -> log-probs of its tokens, packed into two rows a microbatch."""
    layout = packing.Layout(2, 512, 8, 3, media=media)
    found = {}
    for some in packing.plan(groups, layout, couples=True):
        batch = packing.lay_out(groups, some, layout)
        values = np.asarray(logps(bundle.model.config, bundle.params, batch))
        found |= packing.take(groups, some, values)
    return found


@pytest.mark.parametrize("family", MEDIA)
def test_packed_equals_alone(family):
    bundle = tiny_bundle(family)
    kinds = MEDIA[family][1]

    def encoded(example):
        return encode(example, bundle.tokenizer, Limits(512, 512, 512), bundle.coder)

    groups = [encoded(e) for e in examples(kinds)]
    media = media_plans(groups, Compute(row_tokens=512), bundle.model.config)
    packed = per_branch(bundle, groups, media)
    for g, group in enumerate(groups):
        for b, branch in enumerate(group.branches):
            one = dataclasses.replace(group, branches=(branch,))
            alone = per_branch(bundle, [one], media)[0, 0]
            np.testing.assert_allclose(packed[g, b], alone, atol=2e-5)
            assert np.all(alone[branch.scored] < 0)
    # The same words after another medium have other log-probs.
    other = per_branch(bundle, [encoded(examples(kinds, seed=1)[0])], media)[0, 0]
    assert np.abs(packed[0, 0] - other).max() > 1e-3


def test_a_prompts_media_are_decoded_once_for_all_answers():
    bundle, seen = tiny_bundle("llava"), []
    soft = bundle.coder.soft["image"]

    def counted(array, meta):
        seen.append(array.shape)
        return soft.medium(array, meta)

    once = {"image": dataclasses.replace(soft, medium=counted)}
    coder = dataclasses.replace(bundle.coder, soft=once)
    record = examples(["image"])[3]
    assert len(record.responses) == 3 and len(record.prompt[0].parts) == 2
    encode(record, bundle.tokenizer, Limits(512, 512, 512), coder)
    assert len(seen) == 2
