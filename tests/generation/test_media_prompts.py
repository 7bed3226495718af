"""Prompts with media for encoders: the sampler reads them as the trainer does."""

import numpy as np
import pytest

from alanything_jax.data import packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.generate import encode_prompt, generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.tiny import MEDIA, tiny_bundle
from alanything_jax.training.prepare import media_plans
from alanything_jax.training.step import Compute
from tests.models.test_media_rows import examples, logps


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "qwen2_audio"])
def test_the_trainers_log_probs_of_what_was_sampled(family):
    bundle = tiny_bundle(family)
    config = bundle.model.config
    # With media, with others, without any: rows of unequal length.
    asked = [e.prompt for e in examples(MEDIA[family][1])[:3]]
    tokens, soft = zip(
        *(encode_prompt(bundle, prompt) for prompt in asked), strict=True
    )
    assert [placement is None for placement in soft] == [False, False, True]
    done = generate_tokens(
        bundle.params,
        config,
        tokens,
        soft=soft,
        max_new_tokens=8,
        sampling=Sampling(1.0),
    )
    groups = []
    for n, (prompt, placement, said) in enumerate(zip(tokens, soft, done, strict=True)):
        size = len(said.tokens)
        after = None
        if placement is not None:
            # Text goes on behind the prompt's last position.
            turns = placement.position[:, -1:] + 1 + np.arange(size)
            after = type(placement)((), turns, np.zeros(size, np.int32))
        branch = Branch(said.tokens, np.ones(size, bool), soft=after)
        groups.append(EncodedGroup(str(n), prompt, (branch,), prompt_soft=placement))
    media = media_plans(groups, Compute(row_tokens=512), config)
    batch = packing.one_a_row(groups, 3, 512, media)
    values = np.asarray(logps(config, bundle.params, batch))
    for row, (group, said) in enumerate(zip(groups, done, strict=True)):
        start = len(group.prompt)
        found = values[row, start : start + len(said.tokens)]
        np.testing.assert_allclose(said.logps, found, atol=1e-4)


def test_answers_to_pictures_of_several_prompts():
    bundle = tiny_bundle("llava")
    asked = [e.prompt for e in examples(["image"])[:3]]
    answers = generate(bundle, asked, max_new_tokens=4, batch_size=2)
    alone = generate(bundle, asked[:1], max_new_tokens=4, batch_size=1)
    assert len(answers) == 3
    assert answers[0][0].tokens.tolist() == alone[0][0].tokens.tolist()
