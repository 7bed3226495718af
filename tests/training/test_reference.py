"""Cached reference log-probs: right key, right numbers, stale ones refused."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data import packing
from alanything_jax.training import reference
from tests import toys

GROUPS = toys.groups(np.random.default_rng(0), 5)


def made(groups=GROUPS):
    """A log-prob per token that names the token."""

    def forward(batch):
        return -batch.tokens.astype(np.float32)

    return reference.compute(forward, groups, packing.Layout(2, 24, 3, 2))


def test_every_branch_gets_its_own_numbers():
    for group, logps in zip(GROUPS, made(), strict=True):
        for branch, values in zip(group.branches, logps, strict=True):
            np.testing.assert_array_equal(values, -branch.tokens.astype(np.float32))


def test_read_back_without_a_second_pass(tmp_path):
    key = reference.cache_key("weights", GROUPS, "float32")
    first = reference.cached(tmp_path / "r.npz", key, GROUPS, made)

    def never():
        raise AssertionError("computed twice")

    second = reference.cached(tmp_path / "r.npz", key, GROUPS, never)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_key_sees_weights_tokens_masks_and_dtype():
    branch = GROUPS[0].branches[0]
    tokens = branch.tokens.copy()
    tokens[0] += 1
    keys = [reference.cache_key("w", GROUPS, "float32")]
    keys += [reference.cache_key("v", GROUPS, "float32")]
    keys += [reference.cache_key("w", GROUPS, "bfloat16")]
    keys += [reference.cache_key("w", GROUPS[1:], "float32")]
    for other in (
        dataclasses.replace(branch, tokens=tokens),
        dataclasses.replace(branch, scored=~branch.scored),
    ):
        changed = dataclasses.replace(
            GROUPS[0], branches=(other, GROUPS[0].branches[1])
        )
        keys.append(reference.cache_key("w", [changed, *GROUPS[1:]], "float32"))
    assert len(set(keys)) == len(keys)


def test_stale_numbers_are_refused(tmp_path):
    key = reference.cache_key("weights", GROUPS, "float32")
    reference.cached(tmp_path / "r.npz", key, GROUPS, made)
    with pytest.raises(ValueError, match="stale reference log-probs.*r.npz.*Delete it"):
        reference.cached(tmp_path / "r.npz", "another", GROUPS, made)


def test_fingerprint_sees_values_names_and_dtypes():
    value = np.arange(4, dtype=np.float32)
    prints = {
        reference.fingerprint(params)
        for params in (
            {"a": value},
            {"b": value},
            {"a": value + 1},
            {"a": value.astype(np.float16)},
            {"a": value.reshape(2, 2)},
        )
    }
    assert len(prints) == 5
