"""Chat templates: conversations to token ids, and which of them the assistant wrote.

The template is the tokenizer's own. A whole conversation is rendered once and tokenized
once; spans of characters then become masks over tokens, so that no token boundary
depends on how a conversation was cut.

    <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nyo<|im_end|>\\n
    ........................................................^^^^^^^^^^^^
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alanything_jax.data import coder as coders
from alanything_jax.data.coder import Coder
from alanything_jax.data.soft import Placement
from alanything_jax.schema import Message, Part

Fill = Callable[[str], str]


class TemplateError(ValueError):
    """The tokenizer's chat template cannot be used as needed; says what to change."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A tokenized conversation.

    Attributes:
      tokens: [n] int32. scored: [n] bool, written by the assistant (content and end of
        turn, neither header nor the newline after the turn), and not forced.
      stream: [n] int32, see `models.grammar`; all 0 for text.
      first_header, last_header: tokens up to the end of the first and the last
        assistant header.
      soft: what media that encoders take add; None without any.
    """

    tokens: np.ndarray
    scored: np.ndarray
    stream: np.ndarray
    first_header: int
    last_header: int
    soft: Placement | None = None


def chat_dicts(
    messages: Sequence[Message], coder: Coder | None = None
) -> list[dict[str, Any]]:
    """Messages as templates want them: text, with a placeholder for each medium.

    Templates that write placeholders themselves, as those of models with encoders, get
    lists of typed parts.

    Raises TemplateError: a part of a kind that the model does not take.
    """
    placeholders = coder.placeholders if coder else {}
    try:
        texts = [coders.content(m, placeholders) for m in messages]
    except ValueError as error:
        raise TemplateError(str(error)) from error
    if coder is None or not (coder.soft or coder.marks):
        said: list[Any] = texts
    else:
        said = [[_typed(part) for part in m.parts] for m in messages]
    return [
        {"role": m.role, "content": content}
        for m, content in zip(messages, said, strict=True)
    ]


def _typed(part):
    if part.kind == "text":
        return {"type": "text", "text": part.text or ""}
    return {"type": part.kind}


def _text_of(content):
    """What a message says, as `chat_dicts` made it."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def render_text(
    tokenizer: Any,
    chat: list[dict[str, Any]],
    header: bool = False,
    fill: Fill = str,
) -> str:
    """The template's string; with `header`, up to the end of an assistant header.

    `fill` puts in what stands for media that encoders take.

    Raises TemplateError: there is no template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise TemplateError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template. Use an "
            "instruction-tuned model's tokenizer, set tokenizer.chat_template (a "
            "chat_template.jinja beside the weights), or data.chat=False to join prompt "
            "and response as plain text."
        )
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=header
        )
    except jinja2.TemplateError as error:
        roles = [message["role"] for message in chat]
        raise TemplateError(
            f"the chat template refuses a conversation of {roles}: {error}"
        ) from error
    return fill(text)


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    score_from: int = 0,
    coder: Coder | None = None,
    known: coders.Known | None = None,
) -> Rendered:
    """Tokenize a conversation and mark what the assistant wrote.

    Args:
      tokenizer: a fast tokenizer of transformers.
      messages: the conversation, with at least one assistant message.
      score_from: assistant messages before this one are not scored.
      coder: what puts media in; None for text.
      known: of media in common with other conversations (`coder.once`).

    Raises:
      TemplateError: no template, or its rendering cannot be split into turns.
      ValueError: a medium that is broken or that the model does not take.
    """
    chat = chat_dicts(messages, coder)
    turns = [
        n for n, m in enumerate(chat) if m["role"] == "assistant" and n >= score_from
    ]
    if not turns:
        raise TemplateError("the conversation has no assistant message to score.")
    media = coders.SoftMedia(messages, coder, known) if coder else None
    fill = media.fill if media else str
    text = render_text(tokenizer, chat, fill=fill)
    spans = [_span(tokenizer, chat, turn, text, fill) for turn in turns]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = np.array(encoded["input_ids"], np.int32)
    begin, end = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    lead = _started(tokens, coder)
    none = np.zeros_like(lead)
    tokens, begin, end = map(
        np.concatenate, ((lead, tokens), (none, begin), (none, end))
    )
    if "{% generation" in tokenizer.chat_template or "{%- generation" in (
        tokenizer.chat_template
    ):
        if media and any(media.media.values()):
            raise TemplateError(
                "a template with {% generation %} tags cannot mark conversations with "
                "media: leave the tags out, then prefixes of the rendering are compared."
            )
        scored = _tagged(tokenizer, chat, len(tokens) - len(lead))
        scored = np.concatenate([none > 0, scored])
        scored &= begin >= spans[0][0]
    else:
        scored = np.zeros(len(tokens), bool)
        for start, stop in spans:
            scored |= (end > start) & (begin < stop)
    headers = [int(np.sum(end <= start)) for start, _ in spans]
    if coder is None:
        return Rendered(tokens, scored, np.zeros_like(tokens), headers[0], headers[-1])
    tokens, origin = coders.put_codes(tokens, messages, coder, known)
    stream, forced = coder.grammar.streams(tokens)
    ends = [
        int(np.searchsorted(origin, header)) for header in (headers[0], headers[-1])
    ]
    scored = scored[origin] & ~forced
    return Rendered(tokens, scored, stream, *ends, media.place(tokens))


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], coder: Coder | None = None
) -> tuple[np.ndarray, Placement | None]:
    """Token ids [n] of a conversation up to the header of the answer that follows.

    Returns what media that encoders take add, too; None without any.
    """
    media = coders.SoftMedia(messages, coder) if coder else None
    fill = media.fill if media else str
    text = render_text(tokenizer, chat_dicts(messages, coder), header=True, fill=fill)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = np.array(ids, np.int32)
    tokens = np.concatenate([_started(tokens, coder), tokens])
    if media is None:
        return tokens, None
    tokens, _ = coders.put_codes(tokens, messages, coder)
    return tokens, media.place(tokens)


# A letter that texts do not have: it marks where an assistant's turn ends.
_MARK = "\ua66e"


def render_between(
    tokenizer: Any,
    before: Sequence[Message],
    seen: Sequence[Message],
    coder: Coder | None = None,
) -> np.ndarray:
    """Token ids [n] from the end of an assistant's turn to the header of its next one.

        said ... <|im_end|>\\n<|im_start|>user\\nseen<|im_end|>\\n<|im_start|>assistant\\n
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

    Args:
      before: the conversation up to that turn. What the assistant said in it is not read.
      seen: the messages between the two turns; their media as codes.

    Raises:
      TemplateError: no template, or the turn's end is not found, or not between tokens.
      ValueError: `seen` holds a medium that is broken or goes through an encoder.
    """
    kinds = {part.kind for message in seen for part in message.parts}
    if coder and kinds & coder.soft.keys():
        raise ValueError(
            f"{sorted(kinds & coder.soft.keys())} between two turns would go through an "
            "encoder, which rollouts do for prompts alone. Give text, or codes."
        )
    if any(_MARK in message.text for message in seen):
        raise ValueError(
            f"{_MARK!r} stands in a message between two turns: leave it out."
        )
    turn = Message("assistant", (Part("text", text=_MARK),))
    past = [turn if m.role == "assistant" else m for m in before]
    text = render_text(tokenizer, chat_dicts((*past, turn, *seen), coder), header=True)
    start = text.rfind(_MARK) + len(_MARK)
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin, end = np.array(out["offset_mapping"], np.int64).reshape(-1, 2).T
    if _MARK not in text or np.any((begin < start) & (end > start)):
        raise TemplateError(
            "the end of an assistant's turn is not found between two tokens of the "
            f"rendering {text[-80:]!r}: use a template that ends turns by a special token."
        )
    tokens = np.array(out["input_ids"], np.int32)[begin >= start]
    return tokens if coder is None else coders.put_codes(tokens, seen, coder)[0]


def _started(tokens, coder):
    """The token that goes before a rendering which lacks it; empty where none does."""
    wanted = None if coder is None else coder.start
    lacks = wanted is not None and tokens[:1].tolist() != [wanted]
    return np.array([wanted] if lacks else [], np.int32)


def _tagged(tokenizer, chat, count):
    """The mask of a template with `{% generation %}` tags."""
    out = tokenizer.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = np.array(out["assistant_masks"], bool).reshape(-1)
    if len(mask) != count or not mask.any():
        raise TemplateError(
            "the template's {% generation %} tags mark no token of this conversation. "
            "Put them around the assistant's content and end of turn."
        )
    return mask


def _span(tokenizer, chat, turn, text, fill):
    """Characters [start, stop) of an assistant turn: content and end of turn."""
    head = render_text(tokenizer, chat[:turn], header=True, fill=fill)
    whole = render_text(tokenizer, chat[: turn + 1], fill=fill)
    if not whole.startswith(head) or not text.startswith(head):
        raise TemplateError(
            f"the chat template rewrites what comes before message {turn}: the rendering "
            f"up to its header ({head[-40:]!r}) is no prefix of the whole. Mark assistant "
            "text with {% generation %} tags in the template, or train on conversations "
            "of one assistant turn."
        )
    piece = whole[len(head) :]
    content = _text_of(chat[turn]["content"]).strip()
    # Without text the turn is its media, wherever the template has them.
    at = piece.rfind(content) + len(content) if content else 0
    tail = piece[at:]
    # The newline after an end-of-turn token is the template's, not the assistant's.
    ending = tail.rstrip() if tail.strip() else tail
    if text.startswith(piece, len(head)):
        return len(head), len(head) + at + len(ending)
    # A template may drop the reasoning of earlier turns: find the content that is left.
    place = text.find(content + ending, len(head))
    if place < 0:
        raise TemplateError(
            f"the chat template renders message {turn} differently once others follow "
            "it, and its content was not found again. Use {% generation %} tags."
        )
    return len(head), place + len(content) + len(ending)
