"""Our any-to-any model: any text decoder whose vocabulary also holds media codes.

A sequence is text and blocks of codes in any order (`models.grammar`). On disk it is its
trunk's Hugging Face class with a larger vocabulary, plus `anything.json` (which ids are
codes of what) and `codecs/` (arrays of trained codecs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models import codecs as all_codecs
from alanything_jax.models.grammar import Block, Grammar

FILE, FOLDER = "anything.json", "codecs"
# Vocabularies are padded to a multiple of this, so that tensor parallelism divides them.
MULTIPLE = 64


def placeholder(kind: str) -> str:
    """The text of the token that opens a block."""
    return f"<|{kind}|>"


def make_coder(
    tokenizer: Any,
    text_size: int,
    codecs: Sequence[Any],
    params: Mapping[str, dict[str, np.ndarray]] | None = None,
) -> Coder:
    """Give each codec a range of ids behind the text; the tokenizer learns the openers.

    Args:
      tokenizer: gets one special token a kind.
      text_size: ids that are text (at least `len(tokenizer)` afterwards).
      codecs: one a kind.
    """
    marks = {codec.kind: placeholder(codec.kind) for codec in codecs}
    new = [mark for mark in marks.values() if mark not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": new}, replace_extra_special_tokens=False
    )
    text_size = max(text_size, len(tokenizer))
    blocks, start = [], text_size
    for codec in codecs:
        opener = tokenizer.convert_tokens_to_ids(marks[codec.kind])
        blocks.append(
            Block(
                codec.kind,
                opener,
                start,
                codec.size,
                codec.length,
                codec.stop,
                codec.frame,
            )
        )
        start += blocks[-1].ids
    return Coder(
        Grammar(text_size, tuple(blocks)),
        marks,
        {codec.kind: codec for codec in codecs},
        params or {codec.kind: {} for codec in codecs},
    )


def padded_vocab(coder: Coder) -> int:
    """The model's vocabulary size."""
    return -(-coder.grammar.vocab_size // MULTIPLE) * MULTIPLE


def extend_params(
    params: dict[str, Any], vocab_size: int, key: jax.Array
) -> dict[str, Any]:
    """Parameters with rows for the new ids, drawn like the rows that are there."""
    table = params["embed"]["text"]["table"]
    out = dict(params)
    out["embed"] = {"text": {"table": _grow(table, vocab_size, key)}}
    kernel = params.get("heads", {}).get("text", {}).get("kernel")
    if kernel is not None:
        grown = _grow(kernel.T, vocab_size, jax.random.fold_in(key, 1)).T
        out["heads"] = {**params["heads"], "text": {"kernel": grown}}
    return out


def _grow(table, size, key):
    """[V, D] -> [size, D]: new rows have the mean and spread of the old ones."""
    old = table.astype(jnp.float32)
    noise = jax.random.normal(key, (size - len(table), table.shape[1]))
    new = (old.mean(0) + noise * old.std(0)).astype(table.dtype)
    # One that is kept on the host is a shard's source: it must not lie on one device.
    if isinstance(table, np.ndarray):
        return np.concatenate([table, np.asarray(new)])
    return jnp.concatenate([table, new])


def to_json(coder: Coder) -> dict[str, Any]:
    """What `anything.json` holds."""
    return {
        "text_size": coder.grammar.text_size,
        "modalities": [
            {
                "block": dataclasses.asdict(block),
                "placeholder": coder.placeholders[block.kind],
                "codec": all_codecs.to_json(coder.codecs[block.kind]),
            }
            for block in coder.grammar.blocks
        ],
    }


def from_json(
    value: Mapping[str, Any], params: Mapping[str, dict[str, np.ndarray]]
) -> Coder:
    """The coder that `to_json` pictured; `params` per kind, as the folder holds them."""
    blocks = tuple(
        Block(**{k: tuple(v) if isinstance(v, list) else v for k, v in block.items()})
        for block in (m["block"] for m in value["modalities"])
    )
    return Coder(
        Grammar(value["text_size"], blocks),
        {m["block"]["kind"]: m["placeholder"] for m in value["modalities"]},
        {
            m["block"]["kind"]: all_codecs.from_json(m["codec"])
            for m in value["modalities"]
        },
        {block.kind: dict(params.get(block.kind, {})) for block in blocks},
    )
