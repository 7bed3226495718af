"""From a family's ids and its processor's files to the `Coder` that its records need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from alanything_jax.data import preprocess
from alanything_jax.data.coder import Coder, Soft
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.grammar import Grammar
from alanything_jax.schema import Medium

# The configs beside a model's weights: file name without its ending -> what it holds.
Configs = Mapping[str, Mapping[str, Any]]


def media_settings(configs: Configs, hf: Mapping[str, Any]) -> dict[Any, Any]:
    """Settings of `data.preprocess` by kind, of a processor's files and config.json.

    Old processors have a file for pictures (or sound) and one for videos, new ones have
    all in processor_config.json.
    """
    own = configs.get("preprocessor_config", {})
    video = configs.get("video_preprocessor_config", {})
    given = {**own, **configs.get("processor_config", {})}
    return preprocess.settings_from_hf(
        given | ({"video_processor": video} if video else {}), hf
    )


def soft_coder(
    tokenizer: Any,
    cfg: DecoderConfig,
    settings: Mapping[str, Any],
    tokens: Mapping[str, int],
    marks: Mapping[str, str] | None = None,
    said: Mapping[str, Callable[[str, Medium], str]] | None = None,
    two_way: bool = False,
) -> Coder:
    """The coder of a family that takes media through encoders.

    Args:
      settings: kind -> of `data.preprocess`. tokens: kind -> id that stands for an output.
      marks: kind -> what the template writes for a medium, if not that token.
      said: kind -> (that token's text, a medium) -> what the mark becomes, if not the
        token once for each output.
    """
    texts = dict(zip(tokens, named(tokenizer, *tokens.values()), strict=True))
    ways = {kind: _repeated for kind in tokens} | dict(said or {})
    soft = {
        kind: Soft(
            token,
            functools.partial(preprocess.medium, settings[kind]),
            functools.partial(ways[kind], texts[kind]),
        )
        for kind, token in tokens.items()
    }
    advance = cfg.mrope.advance if cfg.mrope else None
    return Coder(
        Grammar(cfg.vocab_size),
        texts | dict(marks or {}),
        soft=soft,
        start=start(tokenizer),
        advance=advance,
        two_way=two_way,
    )


def named(tokenizer: Any, *ids: int) -> list[str]:
    """The tokens of ids that config.json names; ValueError: the tokenizer lacks one."""
    found = tokenizer.convert_ids_to_tokens(ids)
    if None in found:
        raise ValueError(
            f"config.json names the tokens {list(ids)} for media; the tokenizer has for them "
            f"{found}. Give the one that belongs to the model."
        )
    return found


def start(tokenizer: Any) -> int | None:
    """What the tokenizer itself puts before a text, as HF's processors let it."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else None


def _repeated(token: str, medium: Medium) -> str:
    return token * len(medium.outputs)
