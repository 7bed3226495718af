"""Emu3 (arXiv:2409.18869): pictures are ids of its vocabulary, in rows.

    <|image start|> 9 0 * 9 0 <|image token|>  90 codes <|extra_200|>  ...  <|extra_201|>
    <|image end|>

`Model.inputs` takes pictures of any size, as transformers. In records and answers they are
squares of one size (the middle of others): then all but the codes is forced, and a grammar
can say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from alanything_jax.data.coder import Coder
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import codes
from alanything_jax.models.families.codes import Codes
from alanything_jax.models.families.common import Family, base_config, text_names

_SIZES = dict(
    vocab_size=184_622,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=9216,
)
# Some releases saved the names that models have in memory.
_RENAMES = (
    (r"^model\.(?=text_model\.|vqmodel\.)", ""),
    (r"^text_model\.(?=embed_tokens\.|layers\.|norm\.)", "text_model.model."),
    (r"^lm_head\.", "text_model.lm_head."),
)
# Of the model's positions, what one picture may take.
_SHARE = 0.9


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    text = hf.get("text_config") or {}
    tied = hf.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    bias = bool(text.get("attention_bias"))
    return base_config(
        _SIZES | dict(text) | {"tie_word_embeddings": bool(tied)},
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(text.get("mlp_bias")),
    )


def codes_of(hf: Mapping[str, Any], codec: Any, params: Any) -> Codes:
    """The codec, and its codes' ids: `vocabulary_map` has code 123 by
    `<|visual token 000123|>`."""
    words = hf.get("vocabulary_map") or {}
    found = {
        int(word[-8:-2]): token
        for word, token in words.items()
        if word.startswith("<|visual token")
    }
    ids = codes.numbered(found, codec.size)
    return Codes(codec, params, ids, words.get("<image>"), words.get("<|extra_200|>"))


def coder(
    tokenizer: Any, cfg: DecoderConfig, hf: Any, processors: Any, found: Codes
) -> Coder | None:
    """Pictures in prompts and answers: squares of 720 pixels, or what positions allow.

    None where the tokenizer has no token for them.
    """
    del hf, processors
    given = {
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_token": "<image>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    } | tokenizer.special_tokens_map
    opener, closer, mark, wrapper, end = (
        given[f"{name}_token"]
        for name in ("boi", "eoi", "image", "image_wrapper", "eof")
    )
    if not codes.known(tokenizer, opener, closer, wrapper, end):
        return None
    side = min(found.codec.grid[0], math.isqrt(int(_SHARE * cfg.max_positions)) - 1)
    size = side * found.codec.patch
    codec = dataclasses.replace(found.codec, height=size, width=size)
    said = tokenizer(f"{side}*{side}{wrapper}", add_special_tokens=False)["input_ids"]
    return codes.coder(
        tokenizer,
        cfg,
        found,
        codec,
        opener,
        mark,
        tokenizer.bos_token_id,
        before=tuple(said),
        after=tuple(tokenizer.convert_tokens_to_ids([end, closer])),
        row=side,
        row_end=found.row_end,
    )


FAMILY = Family(
    "Emu3ForConditionalGeneration",
    config_from_hf,
    names=lambda cfg: text_names(
        trunk="text_model.model.", head="text_model.lm_head.weight"
    ),
    inputs=codes.with_pictures,
    renames=_RENAMES,
    unused=r"vqmodel\.",
    codes=codes_of,
    coder=coder,
)
