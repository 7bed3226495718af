"""The instruction encoder: any mixture of parts into one stream of tokens, and back.

A media part stands in a rendered conversation as one placeholder, the token that opens
its block. After tokenizing, each placeholder is followed by the codes of its medium:

    draw <|image|>            rendered
    17   3   90 91 90 ...     tokens; 3 opens a block, 90, 91, ... are its codes
    17   8   8  8  8  ...     or copies of the placeholder, where an encoder's outputs go
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax.data import media, soft
from alanything_jax.models.grammar import Grammar
from alanything_jax.schema import Medium, Message, Part, parts_of


@dataclasses.dataclass(frozen=True)
class Soft:
    """How media of one kind become soft tokens.

    Attributes:
      token: id of the token that stands once for each output.
      medium: array and what is known of it (see `data.media`) -> Medium.
      said: Medium -> the text that takes the rendered placeholder's place.
    """

    token: int
    medium: Callable[[np.ndarray, Mapping[str, Any]], Medium]
    said: Callable[[Medium], str]


@dataclasses.dataclass(frozen=True)
class Coder:
    """How a model takes media: as codes of its vocabulary, or through encoders.

    Attributes:
      placeholders: kind -> what stands for a medium in a rendered conversation: the token
        that opens its block, or what the template of a model with encoders writes.
      codecs: kind -> codec. params: kind -> the codec's arrays.
      order: kind -> of each code the place of its id in its block; none = as they come.
      marks: kind -> id of the token that the template itself writes for a medium, where
        that is not its block's opener.
      soft: kind -> how an encoder takes it.
      start: id that HF's processor puts first, where a rendering does not begin with it.
      advance: of M-RoPE, as in `models.config.MRope`; None = positions count tokens.
      two_way: the tokens of an image see one another both ways.
    """

    grammar: Grammar
    placeholders: Mapping[str, str]
    codecs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: Mapping[str, dict[str, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    limits: media.MediaLimits = media.MediaLimits()
    order: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    soft: Mapping[str, Soft] = dataclasses.field(default_factory=dict)
    start: int | None = None
    advance: str | None = None
    two_way: bool = False

    def medium(self, part: Part) -> Medium:
        """What an encoder takes of a part.

        Raises ValueError: the medium is broken, unfit, or over a limit.
        """
        array, meta = media.load(part, self.limits)
        return self.soft[part.kind].medium(array, meta)

    def ids(self, part: Part) -> np.ndarray:
        """Token ids [n] of a media part behind its opener, a stop code included.

        Raises ValueError: the model has no such kind; the medium is broken or unfit.
        """
        block = self.grammar.block(part.kind)
        array, meta = media.load(part, self.limits)
        codec = self.codecs[part.kind]
        if part.kind == "audio" and meta.get("rate", codec.rate) != codec.rate:
            raise media.MediaError(
                f"audio at {meta['rate']} Hz; the codec takes {codec.rate} Hz."
            )
        codes = np.asarray(codec.encode(self.params[part.kind], array), np.int32)
        ids = block.start + self.order.get(part.kind, np.arange(block.size))[codes]
        if block.stop:
            return np.append(ids, block.start + block.size).astype(np.int32)
        out = block.template
        out[out < 0] = ids
        return out

    def part(self, kind: str, ids: np.ndarray) -> Part:
        """The medium of a block's token ids [n], as a file's bytes."""
        block = self.grammar.block(kind)
        ids = np.asarray(ids)
        codes = ids if block.stop else ids[block.template < 0]
        codes = codes[codes < block.start + block.size] - block.start
        if kind in self.order:
            codes = np.argsort(self.order[kind])[codes]
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
    tokens: np.ndarray, media: Mapping[int, Sequence[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Put each medium's ids in the place of its placeholder.

        tokens [5 3 6], media {3: [[3 90 91]]} -> [5 3 90 91 6], [0 1 1 1 2]

    Args:
      tokens: [n]. media: id of a placeholder -> the ids of its media, in order.

    Returns:
      The longer tokens [m], and for each which of the n it came from.

    Raises ValueError: placeholders and media differ in number.
    """
    counts = np.ones(len(tokens), np.int64)
    places = {token: np.flatnonzero(tokens == token) for token in media}
    for token, found in places.items():
        if len(found) != len(media[token]):
            raise ValueError(
                f"{len(found)} placeholders (token {token}) for {len(media[token])} media."
            )
        counts[found] = [len(ids) for ids in media[token]]
    origin = np.repeat(np.arange(len(tokens)), counts)
    out = tokens[origin]
    ends = np.cumsum(counts)
    for token, found in places.items():
        for place, ids in zip(found, media[token], strict=True):
            out[ends[place] - len(ids) : ends[place]] = ids
    return out, origin


# What was made of parts, by their identity.
Known = dict[int, Any]


def once(known: Known, make: Callable[[Part], Any], part: Part) -> Any:
    """`make(part)`, or what it gave before: a group's branches share their prompt's parts,
    and a medium is decoded and encoded once for all of them."""
    if id(part) not in known:
        known[id(part)] = make(part)
    return known[id(part)]


def put_codes(
    tokens: np.ndarray,
    messages: Sequence[Message],
    coder: Coder,
    known: Known | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`expand` with the codes of a conversation's media; raises ValueError as that does.

    `known` is as in `once`.
    """
    ids, known = {}, {} if known is None else known
    for block in coder.grammar.blocks:
        codes = [once(known, coder.ids, part) for part in _of(messages, block.kind)]
        mark = coder.marks.get(block.kind, block.open_id)
        ids[mark] = [np.append(np.int32(block.open_id), c) for c in codes]
    return expand(tokens, ids)


def _of(messages, kind):
    return [part for part in parts_of(messages) if part.kind == kind]


class SoftMedia:
    """A conversation's media for encoders.

    `known` is as in `once`.

    Raises MediaError: one is broken or over a limit.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        coder: Coder,
        known: Known | None = None,
    ):
        self.coder, known = coder, {} if known is None else known
        self.makes: dict[str, list[Callable[[], Medium]]] = {}
        self.media: dict[str, list[Medium]] = {}
        for kind in coder.soft:
            parts = _of(messages, kind)
            self.makes[kind] = [functools.partial(coder.medium, p) for p in parts]
            self.media[kind] = [once(known, coder.medium, p) for p in parts]

    def fill(self, text: str) -> str:
        """A rendering with what stands for its media in the placeholders' places.

        Raises ValueError: more placeholders than media.
        """
        for kind, given in self.media.items():
            first, *rest = text.split(self.coder.placeholders[kind])
            if len(rest) > len(given):
                raise ValueError(f"{len(rest)} placeholders for {len(given)} {kind}s.")
            said = map(self.coder.soft[kind].said, given)
            text = first + "".join(map("".join, zip(said, rest, strict=False)))
        return text

    def place(self, tokens: np.ndarray) -> soft.Placement | None:
        """What the media add to the tokens [n] of the filled text; None without any.

        Raises ValueError: placeholders and media differ in number.
        """
        entries = self.coder.soft
        waiting = {entries[kind].token: list(m) for kind, m in self.media.items()}
        makes = {id(m): make for k in self.media for m, make in self._pairs(k)}
        placed, size = soft.find(tokens, waiting), len(tokens)
        if any(waiting.values()):
            raise ValueError(
                "the chat template leaves out some of the record's media: it writes no "
                "placeholder for them."
            )
        if not placed:
            return None
        turns = np.broadcast_to(np.arange(size, dtype=np.int32), (3, size))
        if self.coder.advance is not None:
            turns = soft.positions(size, placed, self.coder.advance)
        two_way = self.coder.two_way
        span = soft.spans(size, placed) if two_way else np.zeros(size, np.int32)
        kept = [soft.waiting(makes[id(p.medium)], p.medium, p.places) for p in placed]
        return soft.Placement(tuple(kept), turns, span)

    def _pairs(self, kind):
        return zip(self.media[kind], self.makes[kind], strict=True)


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
        first, count = at + 1, block.fits(tokens[at + 1 :])
        begin = at = first + count
        whole = count == block.total
        if block.stop and block.start + block.size in tokens[at : at + 1]:
            begin = at = at + 1
            whole = count > 0
        if whole:
            out.append(coder.part(block.kind, tokens[first:at]))
    return tuple([*out, *_said(tokenizer, tokens[begin:])]) or (Part("text", text=""),)


def _said(tokenizer, tokens):
    text = _text(tokenizer, tokens) if len(tokens) else ""
    return [Part("text", text=text)] if text.strip() else []


def _text(tokenizer, tokens):
    return tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)
