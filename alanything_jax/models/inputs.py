"""From the arrays of a family's HF processor to a `Batch` of rows of one sequence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alanything_jax.data import soft
from alanything_jax.models.config import DecoderConfig
from alanything_jax.schema import Batch, Medium


def text(cfg: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> Batch:
    """Of a text family: `input_ids` [B, T], and `attention_mask` [B, T] (1 = real).

    Raises ValueError: an array this family does not know, or a shape that differs.
    """
    del cfg
    return plain_batch(*tokens_of(arrays, ()))


def tokens_of(
    arrays: Mapping[str, np.ndarray], others: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [B, T]; `others` are names that the family knows, too.

    Raises ValueError: an array that the family does not know, or a shape that differs.
    """
    known = {"input_ids", "attention_mask", *others}
    unknown = set(arrays) - known
    if unknown or "input_ids" not in arrays:
        raise ValueError(
            f"this family takes {sorted(known)}; got {sorted(arrays)}. Drop "
            f"{sorted(unknown)} or load a model that uses it."
        )
    tokens = np.asarray(arrays["input_ids"], np.int32)
    real = np.asarray(arrays.get("attention_mask", np.ones_like(tokens)), np.int32)
    if tokens.ndim != 2 or real.shape != tokens.shape:
        raise ValueError(
            f"input_ids {tokens.shape} and attention_mask {real.shape}: both are [B, T]."
        )
    return tokens, real


def plain_batch(tokens: np.ndarray, real: np.ndarray) -> Batch:
    """Rows of one sequence each: token ids [B, T] and a 0/1 mask of the real ones.

    Rotary positions count every slot, padding too, as transformers does when it is
    given no position ids; every real token but a row's first is scored.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    real = jnp.asarray(real, jnp.int32)
    slot = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    zero = jnp.zeros_like(tokens)
    after = (real * jnp.pad(real[:, :-1], ((0, 0), (1, 0)))) > 0
    return Batch(
        tokens=tokens,
        group=real,
        branch=real,
        index=slot,
        position=jnp.stack([slot] * 3, axis=1),
        stream=zero,
        span=zero,
        source=jnp.where(after, slot - 1, -1),
        response=jnp.where(after, jnp.arange(tokens.shape[0])[:, None], -1),
        table=jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None],
    )


def with_media(
    cfg: DecoderConfig,
    tokens: np.ndarray,
    real: np.ndarray,
    mediums: Mapping[int, Sequence[Medium]],
    two_way: bool = False,
) -> Batch:
    """A batch whose media stand, in order, at the tokens of their kind's placeholder.

    Args:
      tokens, real: [B, T].
      mediums: id of a placeholder -> its media, through all rows.
      two_way: the tokens of an image see one another both ways.

    Positions are those of M-RoPE where the family has it, over a row's real tokens;
    padding has position 1, as in transformers.

    Raises ValueError: the media do not fit the placeholders that there are.
    """
    waiting = {token: list(items) for token, items in mediums.items()}
    rows, spans = [], np.zeros_like(tokens)
    position = np.repeat(
        np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)[:, None], 3, axis=1
    ).astype(np.int32)
    for r, (row, mask) in enumerate(zip(tokens, real, strict=True)):
        placed = soft.find(row, waiting)
        rows.append(placed)
        if two_way:
            spans[r] = soft.spans(len(row), placed)
        if cfg.mrope is not None:
            kept = np.flatnonzero(mask)
            inner = [
                soft.Placed(p.medium, np.searchsorted(kept, p.places)) for p in placed
            ]
            position[r] = 1
            position[r][:, kept] = soft.positions(len(kept), inner, cfg.mrope.advance)
    left = {token: len(items) for token, items in waiting.items() if items}
    if left:
        raise ValueError(
            f"more media than placeholders: {left} (by token id) are left."
        )
    plans = [soft.plan_of(e, 0) for e in cfg.encoders]
    media = {
        plan.name: soft.lay_out(rows, plan, tokens.shape[1])
        for plan in plans
        if any(p.medium.encoder == plan.name for row in rows for p in row)
    }
    return plain_batch(tokens, real).replace(
        position=jnp.asarray(position), span=jnp.asarray(spans), media=media
    )


def grouped(kinds: Sequence[Any]) -> dict[int, list[Medium]]:
    """(placeholder's id, media) pairs as a dict; pairs without media are left out."""
    return {token: list(items) for token, items in kinds if len(items)}
