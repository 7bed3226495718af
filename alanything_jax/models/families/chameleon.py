"""Chameleon (arXiv:2405.09818): pictures are ids of its vocabulary.

Queries and keys have a LayerNorm per head; the larger models have norms behind the branches
(`swin_norm`). A picture is `<racm3:break>`, its codes, `<eoss>`. transformers never lets
the model say a code; here the grammar says where codes may stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.data.coder import Coder
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.families import codes, frontend
from alanything_jax.models.families.codes import Codes
from alanything_jax.models.families.common import (
    LAYER_NAMES,
    Family,
    base_config,
    text_names,
)

_SIZES = dict(
    vocab_size=65536,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
)
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from a parsed config.json."""
    bias = bool(hf.get("attention_bias"))
    return base_config(
        _SIZES | dict(hf) | {"head_dim": None},
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias")),
        qk_norm="layer",
        norm_place="after" if hf.get("swin_norm") else "before",
    )


def names(cfg: DecoderConfig) -> dict[str, tuple]:
    """The names of our parameters on disk."""
    sizes = {"q": cfg.num_heads, "k": cfg.num_kv_heads}
    biases = {
        f"attn/{n}_norm/bias": (f"self_attn.{n}_norm.bias", 0, (size, cfg.head_width))
        for n, size in sizes.items()
    }
    return text_names({**LAYER_NAMES, **biases})


def codes_of(hf: Mapping[str, Any], codec: Any, params: Any) -> Codes:
    """The codec, and its codes' ids: `vocabulary_map` has them by `IMGIMG`, the code's digits
    as letters A to J, `Z`."""
    words = hf.get("vocabulary_map") or {}
    found = {
        int(word[6:-1].translate(_DIGITS)): token
        for word, token in words.items()
        if word.startswith("IMGIMG")
    }
    ids = codes.numbered(found, codec.size)
    return Codes(codec, params, ids, words.get("<image>"))


def coder(
    tokenizer: Any, cfg: DecoderConfig, hf: Any, processors: Any, found: Codes
) -> Coder | None:
    """Pictures in prompts and answers; None where the tokenizer has no token for them."""
    del hf, processors
    special = tokenizer.special_tokens_map
    opener = special.get("boi_token", "<racm3:break>")
    closer = special.get("eoi_token", "<eoss>")
    mark = special.get("image_token", "<image>")
    if not codes.known(tokenizer, opener, closer):
        return None
    after = (tokenizer.convert_tokens_to_ids(closer),)
    return codes.coder(
        tokenizer,
        cfg,
        found,
        found.codec,
        opener,
        mark,
        frontend.start(tokenizer),
        after=after,
    )


FAMILY = Family(
    "ChameleonForConditionalGeneration",
    config_from_hf,
    names=names,
    inputs=codes.with_pictures,
    unused=r"model\.vqmodel\.",
    codes=codes_of,
    coder=coder,
)
