"""Prefill and decode with a KV cache, compiled once per bucket of shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import packing
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.soft import Placement, plan_of
from alanything_jax.generation.sampler import Sampling, sample
from alanything_jax.models import decoder, grammar, heads
from alanything_jax.models.config import DecoderConfig

# Tokens decoded between two looks at the host: few enough to stream, enough to not wait.
CHUNK = 8


@dataclasses.dataclass(frozen=True)
class Completion:
    """One generated continuation.

    Attributes:
      tokens: [n] int32, its end-of-text token included if it came.
      logps: [n] float32, as `sampler.sample` defines them.
      finished: False where `max_new_tokens` cut it off.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finished: bool


def bucket(size: int, smallest: int = 32) -> int:
    """The next power of two: few shapes, so few compilations."""
    return max(smallest, 1 << (size - 1).bit_length())


@functools.partial(
    jax.jit, static_argnames=("cfg", "lora_scale"), donate_argnames="cache"
)
def prefill(params, cfg, tokens, num_new, cache, lora, lora_scale, prompt=None):
    """Read right-padded prompts [B, S]; logits [B, V] after each one's last token.

    `prompt` is a `Batch` of the same rows, where there are media for encoders.
    """
    hidden, cache = decoder.step(
        params,
        cfg,
        tokens,
        cache,
        num_new=num_new,
        prompt=prompt,
        lora=lora,
        lora_scale=lora_scale,
    )
    last = jnp.take_along_axis(hidden, (num_new - 1)[:, None, None], axis=1)[:, 0]
    return heads.logits(params, cfg, last), cache


@functools.partial(
    jax.jit, static_argnames=("cfg", "sampling", "lora_scale"), donate_argnames="cache"
)
def decode(
    params, cfg, logits, cache, keys, done, state, eos, sampling, lora, lora_scale
):
    """`CHUNK` more tokens of every row; rows that are done repeat without effect.

    Returns:
      tokens and log-probs [CHUNK, B], next logits, cache, keys, done, grammar's state.
    """

    def body(carry, _):
        logits, cache, keys, done, state = carry
        split = jax.vmap(jax.random.split)(keys)
        allowed = grammar.allowed(cfg.grammar, state) if cfg.grammar else None
        tokens, logps = sample(logits, split[:, 1], sampling, allowed)
        if cfg.grammar:
            state = grammar.advance(cfg.grammar, state, tokens)
        done_after = done | jnp.any(tokens[:, None] == eos, axis=-1)
        hidden, cache = decoder.step(
            params, cfg, tokens[:, None], cache, lora=lora, lora_scale=lora_scale
        )
        logits = heads.logits(params, cfg, hidden[:, 0])
        carry = (logits, cache, split[:, 0], done_after, state)
        return carry, (tokens, logps, done)

    carry, (tokens, logps, skip) = jax.lax.scan(
        body, (logits, cache, keys, done, state), None, length=CHUNK
    )
    return tokens, logps, skip, *carry


def generate_tokens(
    params: Any,
    cfg: DecoderConfig,
    prompts: Sequence[np.ndarray],
    *,
    soft: Sequence[Placement | None] = (),
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(),
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    lora: Any = None,
    lora_scale: float = 1.0,
    on_tokens: Callable[[np.ndarray], None] | None = None,
) -> list[Completion]:
    """Continue every prompt (1-D int arrays, at least one token each).

    `soft` has each prompt's media for encoders; a prompt that ends with the opener of a
    block is continued by its codes. Row n draws its randomness from (seed, n) alone.
    `on_tokens` gets the first row's new tokens as they come.

    Raises ValueError: an empty prompt, or one that leaves no room in `max_positions`.
    """
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("a prompt has no token: give it some text.")
    if longest + max_new_tokens > cfg.max_positions:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the "
            f"model's {cfg.max_positions} positions: shorten one of them."
        )
    width, count = bucket(longest), len(prompts)
    padded = np.zeros((count, width), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    room = bucket(width + max_new_tokens + CHUNK)
    dtype = params["embed"]["text"]["table"].dtype
    cache = decoder.init_cache(cfg, count, room, dtype)
    lengths = jnp.array([len(prompt) for prompt in prompts], jnp.int32)
    batch = _with_media(cfg, prompts, soft, width)
    logits, cache = prefill(
        params, cfg, padded, lengths, cache, lora, lora_scale, batch
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.arange(count)
    )
    done, eos = jnp.zeros((count,), bool), jnp.array(list(eos_ids) or [-1])
    state = grammar.initial(count)
    if cfg.grammar:
        ends = jnp.array([prompt[-1] for prompt in prompts], jnp.int32)
        state = grammar.after(cfg.grammar, ends)
    tokens, logps, skips = [], [], []
    for first in range(0, max_new_tokens, CHUNK):
        new, logp, skip, logits, cache, keys, done, state = decode(
            params,
            cfg,
            logits,
            cache,
            keys,
            done,
            state,
            eos,
            sampling,
            lora,
            lora_scale,
        )
        keep = slice(0, min(CHUNK, max_new_tokens - first))
        for store, value in ((tokens, new), (logps, logp), (skips, skip)):
            store.append(np.asarray(value)[keep])
        if on_tokens:
            on_tokens(tokens[-1][:, 0][~skips[-1][:, 0]])
        if bool(done.all()):
            break
    return _completions(*map(np.concatenate, (tokens, logps, skips)), set(eos_ids))


def _with_media(cfg, prompts, soft, width):
    """The prompts as a batch, one a row; None where no prompt has media."""
    if not any(soft):
        return None
    groups = [
        EncodedGroup(str(n), tokens, (), prompt_soft=placement)
        for n, (tokens, placement) in enumerate(zip(prompts, soft, strict=True))
    ]
    media = [
        # Few budgets, so few compilations.
        plan_of(encoder, bucket(-(-max(sizes) // encoder.align), 1) * encoder.align)
        for encoder, sizes in packing.media_needs(groups, cfg.encoders)
    ]
    return packing.one_a_row(groups, len(groups), width, media)


def _completions(tokens, logps, skips, eos):
    out = []
    for row in range(tokens.shape[1]):
        live = ~skips[:, row]
        said = tokens[live, row]
        finished = len(said) > 0 and int(said[-1]) in eos
        out.append(Completion(said, logps[live, row], finished))
    return out
