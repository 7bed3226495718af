"""Small random things that many tests share."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.models import params as trees
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.model import Model
from alanything_jax.rewards.judge import Reply
from alanything_jax.training.step import Compute, Program

CONFIG = DecoderConfig(
    vocab_size=61,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    ffw_width=48,
    qk_norm="rms",
)


def annotator(questions):
    """A judge that answers annotation's questions in the form asked for."""
    said = {"grade": "2", "better": "1", "scope": "none"}
    replies = {}
    for question in questions:
        wanted = re.findall(r"^<(\w+)>", question.messages[-1].text, re.MULTILINE)
        text = "".join(f"<{w}>{said.get(w, 'so it is')}</{w}>" for w in wanted)
        replies[question.id] = Reply(question.id, text)
    return replies


def group(rng, name, prompt=5, sizes=(4, 6), margin=0.5, gaps=False):
    """A random encoded group; with `gaps`, some response tokens are unscored."""

    def branch(size):
        scored = np.ones(size, bool)
        if gaps and size > 2:
            scored[1 : size // 2] = False
        return Branch(rng.integers(0, CONFIG.vocab_size, size).astype(np.int32), scored)

    tokens = rng.integers(0, CONFIG.vocab_size, prompt).astype(np.int32)
    good, order = (
        tokens[0] % 2 + np.arange(len(sizes)),
        tokens[0] + np.arange(len(sizes)),
    )
    numbers = {
        "margin": np.float32(margin),
        "label": (good % 2).astype(np.float32),
        "rating": (order * 3 % 7).astype(np.float32),
        "reward": np.sin(order * 1.3).astype(np.float32),
        "cost": np.cos(order * 0.7).astype(np.float32),
        "multiplier": np.float32(0.7),
        "ptx": np.float32(tokens[0] % 3 == 0),
    }
    return EncodedGroup(str(name), tokens, tuple(map(branch, sizes)), numbers)


def groups(rng, count=6, responses=2, gaps=False, longest=9):
    """`count` random groups of unequal lengths."""
    return [
        group(
            rng,
            n,
            prompt=int(rng.integers(1, longest)),
            sizes=tuple(int(s) for s in rng.integers(1, longest, responses)),
            margin=float(rng.uniform()),
            gaps=gaps,
        )
        for n in range(count)
    ]


def pack(
    items,
    rows=2,
    row_tokens=32,
    couples=True,
    numbers=("margin",),
    capacity=None,
    responses=None,
):
    """All microbatches of one step of `items`."""
    layout = packing.Layout(
        rows,
        row_tokens,
        capacity or len(items),
        responses or max(len(g.branches) for g in items),
        numbers,
    )
    planned = packing.plan(items, layout, couples)
    batches = [packing.lay_out(items, some, layout) for some in planned]
    return [jax.tree.map(jnp.asarray, batch) for batch in batches], planned


def parameters(config=CONFIG, score_head=False, seed=0):
    """Random parameters whose norms are not all ones."""
    specs = Model("toy", config).specs(score_head)
    flat = trees.flatten(trees.init(specs, jax.random.key(seed)))
    key = jax.random.key(seed + 1)
    for n, path in enumerate(sorted(flat)):
        if path.endswith(("scale", "bias")):
            noise = jax.random.normal(jax.random.fold_in(key, n), flat[path].shape)
            flat[path] = flat[path] + 0.1 * noise
    return trees.unflatten(flat)


def program(algorithm, **compute):
    """A program over the toy model, dense attention unless told otherwise."""
    options = Compute(attention="dense", block=16, head_chunk=8)
    return Program(algorithm, CONFIG, dataclasses.replace(options, **compute))
