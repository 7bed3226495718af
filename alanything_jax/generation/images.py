"""Pictures from a model that draws with a table and a head of its own: Janus.

From the decoder's state the head reads the next code; the table and an aligner embed it.
Classifier-free guidance (arXiv:2207.12598): each row has a twin whose prompt says nothing,

    logits = twin's + guidance * (row's - twin's)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax import hub
from alanything_jax.data import media
from alanything_jax.generation.decode import Completion, bucket
from alanything_jax.generation.sampler import Sampling, sample
from alanything_jax.models import decoder
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import family_of, janus, towers
from alanything_jax.schema import Part


def twins(tokens: np.ndarray, kept: Sequence[int], blank: int) -> np.ndarray:
    """Prompts [B, S] without their words: all but the `kept` ids become `blank`."""
    return np.where(np.isin(tokens, kept), tokens, np.int32(blank))


def guided(logits: jax.Array, guidance: float | jax.Array) -> jax.Array:
    """[2 B, V] of rows and, behind them, their twins -> [B, V]."""
    given, free = jnp.split(logits, 2)
    return free + guidance * (given - free)


@functools.partial(
    jax.jit, static_argnames=("cfg", "activation", "sampling", "count", "room")
)
def draw(
    params: Any,
    drawing: Any,
    cfg: DecoderConfig,
    activation: str,
    tokens: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    guidance: jax.Array,
    sampling: Sampling,
    count: int,
    room: int,
) -> tuple[jax.Array, jax.Array]:
    """Codes and their log-probs, guidance among them, both [B, count].

    Args:
      drawing: of `families.janus.drawing`.
      tokens: [2 B, S], prompts and their twins, padded on the right. lengths: [2 B].
      keys: [B]. room: of the cache, S + count at least.
    """
    dtype = params["embed"]["text"]["table"].dtype
    drawing = jax.tree.map(lambda x: jnp.asarray(x, dtype), drawing)
    cache = decoder.init_cache(cfg, len(tokens), room, dtype)
    states, cache = decoder.step(params, cfg, tokens, cache, num_new=lengths)
    state = jnp.take_along_axis(states, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def body(carry, _):
        state, cache, keys = carry
        split = jax.vmap(jax.random.split)(keys)
        logits = janus.mlp(state, drawing["head"], activation).astype(jnp.float32)
        codes, logps = sample(guided(logits, guidance), split[:, 1], sampling)
        both = jnp.concatenate([codes, codes])[:, None]
        x = janus.mlp(drawing["table"][both], drawing["aligner"], activation)
        states, cache = decoder.step(params, cfg, both, cache, embedded=x)
        return (states[:, 0], cache, split[:, 0]), (codes, logps)

    _, (codes, logps) = jax.lax.scan(body, (state, cache, keys), None, length=count)
    return codes.T, logps.T


def opener(bundle: hub.Bundle) -> int:
    """The id that a prompt for a picture ends with."""
    named = bundle.tokenizer.special_tokens_map.get("boi_token", "<begin_of_image>")
    return bundle.tokenizer.convert_tokens_to_ids(named)


def paint(
    bundle: hub.Bundle,
    prompts: Sequence[np.ndarray],
    *,
    sampling: Sampling = Sampling(),
    guidance: float = 5.0,
    seed: int = 0,
) -> list[Completion]:
    """The codes of a picture for each prompt (1-D ids that end with the opener).

    Row n draws its randomness from (seed, n) alone.

    Raises ValueError: no padding token; a prompt leaves no room.
    """
    bos, pad = bundle.tokenizer.bos_token_id, bundle.tokenizer.pad_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has no pad_token, which stands for what a twin's prompt does "
            "not say: set it in tokenizer_config.json."
        )
    kept = [token for token in (bos, opener(bundle)) if token is not None]
    cfg, codes = bundle.model.config, bundle.model.codes
    count, longest = codes.codec.length, max(map(len, prompts))
    if longest + count > cfg.max_positions:
        raise ValueError(
            f"a prompt of {longest} tokens and a picture of {count} codes exceed the "
            f"model's {cfg.max_positions} positions: shorten the prompt."
        )
    tokens = np.full((len(prompts), bucket(longest)), pad, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    both = np.concatenate([tokens, twins(tokens, kept, pad)])
    rows = jnp.arange(len(prompts))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)
    stated = bundle.hf_config.get("vq_config", {}).get("hidden_act", "gelu")
    found, logps = draw(
        bundle.params,
        family_of(bundle.model.family).drawing(bundle.extra),
        cfg,
        towers.activation(stated, "vq_config.hidden_act"),
        both,
        jnp.array([len(prompt) for prompt in prompts] * 2, jnp.int32),
        keys,
        jnp.float32(guidance),
        sampling,
        count,
        bucket(tokens.shape[1] + count),
    )
    pairs = zip(np.asarray(found), np.asarray(logps), strict=True)
    return [Completion(*pair, finished=True) for pair in pairs]


def picture(bundle: hub.Bundle, codes: np.ndarray) -> Part:
    """The picture of `paint`'s codes, as a file's bytes."""
    codec = bundle.model.codes
    pixels = codec.codec.decode(dict(codec.params), codes)
    return Part("image", data=media.dump("image", pixels))
