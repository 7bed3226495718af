"""The instruction encoder: any mixture of parts into one stream of tokens, and back.

A media part stands in a rendered conversation as one placeholder, the token that opens
its block. After tokenizing, each placeholder is followed by the codes of its medium:

    draw <|image|>            rendered
    17   3   90 91 90 ...     tokens; 3 opens a block, 90, 91, ... are its codes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.data import media
from alanything_jax.models.grammar import Grammar
from alanything_jax.schema import Message, Part


@dataclasses.dataclass(frozen=True)
class Coder:
    """Grammar and codecs of an any-to-any model.

    Attributes:
      placeholders: kind -> the text of the token that opens its block.
      codecs: kind -> codec. params: kind -> the codec's arrays.
    """

    grammar: Grammar
    placeholders: Mapping[str, str]
    codecs: Mapping[str, Any]
    params: Mapping[str, dict[str, np.ndarray]]
    limits: media.MediaLimits = media.MediaLimits()

    def ids(self, part: Part) -> np.ndarray:
        """Token ids [n] of a media part's codes, the stop code included.

        Raises ValueError: the model has no such kind; the medium is broken or unfit.
        """
        block = self.grammar.block(part.kind)
        array, meta = media.load(part, self.limits)
        codec = self.codecs[part.kind]
        if part.kind == "audio" and meta.get("rate", codec.rate) != codec.rate:
            raise media.MediaError(
                f"audio at {meta['rate']} Hz; the codec takes {codec.rate} Hz."
            )
        codes = codec.encode(self.params[part.kind], array)
        ids = block.start + np.asarray(codes, np.int32)
        return np.append(ids, block.start + block.size) if block.stop else ids

    def part(self, kind: str, ids: np.ndarray) -> Part:
        """The medium of a block's token ids [n], as a file's bytes."""
        block = self.grammar.block(kind)
        codes = np.asarray(ids) - block.start
        codes = codes[codes < block.size]
        codec = self.codecs[kind]
        array = codec.decode(self.params[kind], codes)
        rate = {"audio": {"rate": getattr(codec, "rate", None)}}.get(kind, {})
        return Part(kind, data=media.dump(kind, array, **rate))


def content(message: Message, placeholders: Mapping[str, str]) -> str:
    """A message's text with a placeholder for each media part.

    Raises ValueError: a kind without placeholder, or text that holds one itself.
    """
    pieces = []
    for part in message.parts:
        if part.kind == "text":
            said = part.text or ""
            if any(mark in said for mark in placeholders.values()):
                raise ValueError(
                    f"the text {said[:60]!r} holds a placeholder of media; give media as "
                    "parts of their own."
                )
            pieces.append(said)
        elif part.kind in placeholders:
            pieces.append(placeholders[part.kind])
        else:
            takes = ", ".join(["text", *placeholders])
            raise ValueError(
                f"a {message.role} message holds {part.kind}, and this model takes "
                f"{takes} only. Drop those records or use a model with that input."
            )
    return "".join(pieces)


def expand(
    tokens: np.ndarray, openers: Sequence[int], codes: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Put each medium's ids behind its placeholder.

        tokens [5 3 6], openers [3], codes [[90 91]] -> [5 3 90 91 6], [0 1 1 1 2]

    Args:
      tokens: [n], with a placeholder for each entry of `codes`, in order.

    Returns:
      The longer tokens [m], and for each which of the n it came from.

    Raises ValueError: placeholders and media differ in number.
    """
    places = np.flatnonzero(np.isin(tokens, list(openers)))
    if len(places) != len(codes):
        raise ValueError(f"{len(places)} placeholders for {len(codes)} media.")
    counts = np.ones(len(tokens), np.int64)
    counts[places] += np.array([len(ids) for ids in codes], np.int64)
    origin = np.repeat(np.arange(len(tokens)), counts)
    out = tokens[origin]
    ends = np.cumsum(counts)
    for place, ids in zip(places, codes, strict=True):
        out[ends[place] - len(ids) : ends[place]] = ids
    return out, origin


def parts(tokens: np.ndarray, tokenizer: Any, coder: Coder | None) -> tuple[Part, ...]:
    """Generated tokens as parts: text between blocks, media as files.

    A block that was cut off by the token limit is left out.
    """
    if coder is None:
        return (Part("text", text=_text(tokenizer, tokens)),)
    out: list[Part] = []
    openers = {block.open_id: block for block in coder.grammar.blocks}
    at = begin = 0
    while at < len(tokens):
        block = openers.get(int(tokens[at]))
        if block is None:
            at += 1
            continue
        out += _said(tokenizer, tokens[begin:at])
        first = at = at + 1
        while at < len(tokens) and block.start <= tokens[at] < block.start + block.ids:
            at += 1
        codes = tokens[first:at]
        whole = block.stop and len(codes) > 1 and codes[-1] == block.start + block.size
        if whole or (not block.stop and len(codes) == block.length):
            out.append(coder.part(block.kind, codes))
        begin = at
    return tuple([*out, *_said(tokenizer, tokens[begin:])]) or (Part("text", text=""),)


def _said(tokenizer, tokens):
    text = _text(tokenizer, tokens) if len(tokens) else ""
    return [Part("text", text=text)] if text.strip() else []


def _text(tokenizer, tokens):
    return tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)
