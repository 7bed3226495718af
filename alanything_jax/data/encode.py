"""Examples to token ids: a prompt once, and K branches with what is scored in each."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.data.soft import Placement
from alanything_jax.data.template import TemplateError, render
from alanything_jax.schema import Example


class BadRecord(ValueError):
    """A record that cannot be trained on; `field` and the message say why."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class TooLong(BadRecord):
    """A sound record over a token limit: dropped by policy, not a fault of the data."""


class Undecided(BadRecord):
    """A sound record of which no response is preferred, where preferences are learnt."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """One response: tokens [n] int32, which of them are scored, and their streams.

    `stream` [n] int32 may be None: all text. `soft` is what media of encoders add.
    """

    tokens: np.ndarray
    scored: np.ndarray
    stream: np.ndarray | None = None
    soft: Placement | None = None


@dataclasses.dataclass(frozen=True)
class EncodedGroup:
    """One prompt and its responses as token ids.

    Attributes:
      prompt: [P] int32, shared by all branches. prompt_stream: [P], None = all text.
      prompt_soft: what media that encoders take add; None if the record has none.
      branches: the chosen response first, the others in the source's order.
      numbers: `margin` (), `label` [K] and `rating` [K], where the record has them.
      truncated: whether a limit cut tokens off.
      source: which of a recipe's data sets it is from.
    """

    id: str
    prompt: np.ndarray
    branches: tuple[Branch, ...]
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truncated: bool = False
    prompt_stream: np.ndarray | None = None
    source: int = 0
    prompt_soft: Placement | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is cut off, and how.

    Attributes:
      truncation: "drop" leaves out a record over a limit; "keep_end" cuts the start of
        a prompt and the middle of a response, whose end of turn stays.
      chat: use the chat template; otherwise join text and add the end-of-text token.
    """

    max_prompt_tokens: int = 4096
    max_response_tokens: int = 4096
    max_group_tokens: int = 4096
    truncation: Literal["drop", "keep_end"] = "drop"
    chat: bool = True


def encode(
    example: Example, tokenizer: Any, limits: Limits, coder: Coder | None = None
) -> EncodedGroup:
    """Tokenize one example; `coder` puts its media in, where the model takes any.

    Raises:
      BadRecord: nothing to score in a response, or the template cannot render it.
      TooLong: over a limit, with truncation "drop" (or no cut would help).
    """
    order = list(range(len(example.responses)))
    if not order:
        raise BadRecord("responses", "the record has none. Give at least one response.")
    if example.feedback.chosen is not None:
        order.sort(key=lambda n: n != example.feedback.chosen)
    if limits.chat:
        prompt, stream, soft, branches = _chat(example, order, tokenizer, coder)
    else:
        prompt, stream, soft, branches = _plain(example, order, tokenizer)
    for number, branch in zip(order, branches, strict=True):
        if not branch.scored.any():
            raise BadRecord(
                f"responses[{number}]",
                "empty after templating: no token is left to score. Remove the record "
                "or give the response some text.",
            )
    whole = len(prompt)
    prompt, branches, cut = _fit(prompt, branches, limits)
    if cut and soft is not None:
        raise TooLong("prompt", f"{whole} tokens; a record with media is never cut")
    numbers = _numbers(example, order)
    stream = stream[-len(prompt) :]
    return EncodedGroup(
        example.id,
        prompt,
        tuple(branches),
        numbers,
        cut,
        stream,
        prompt_soft=soft,
    )


def _chat(example, order, tokenizer, coder):
    """Render each branch whole; the prompt is their longest common prefix that ends at
    or before the last header (the first, where there is one branch)."""
    history, known = len(example.prompt), {}
    _only_written(example, coder)
    try:
        rendered = [
            render(
                tokenizer,
                (*example.prompt, *example.responses[n].messages),
                history,
                coder,
                known,
            )
            for n in order
        ]
    except TemplateError as error:
        raise BadRecord("messages", str(error)) from error
    for n in order:
        said = [
            part.kind != "text" or (part.text or "").strip()
            for m in example.responses[n].messages
            if m.role == "assistant"
            for part in m.parts
        ]
        if not any(said):
            raise BadRecord(
                f"responses[{n}]",
                "empty after templating: the assistant says nothing. Remove the record "
                "or give the response some text.",
            )
    size = min(item.first_header for item in rendered)
    tokens = np.stack([item.tokens[:size] for item in rendered])
    same = np.all(tokens == tokens[:1], axis=0)
    size = size if same.all() else int(np.argmin(same))
    first = rendered[0]
    return (
        first.tokens[:size],
        first.stream[:size],
        first.soft and first.soft.part(0, size),
        [
            Branch(
                r.tokens[size:],
                r.scored[size:],
                r.stream[size:],
                r.soft and r.soft.part(size, len(r.tokens)),
            )
            for r in rendered
        ],
    )


def _only_written(example, coder):
    """Raises BadRecord: an answer holds a medium that the model reads but cannot say."""
    for n, response in enumerate(example.responses):
        said = (m for m in response.messages if m.role == "assistant")
        for part in (part for message in said for part in message.parts):
            if coder and part.kind in coder.soft:
                raise BadRecord(
                    f"responses[{n}]",
                    f"the assistant's turn holds {part.kind}, which this model reads "
                    "through an encoder and does not write in training. Remove the record, "
                    "or use a model with codes for it.",
                )


def _plain(example, order, tokenizer):
    """Text joined without a template, ended by the end-of-text token."""
    if tokenizer.eos_token_id is None:
        raise BadRecord(
            "tokenizer", "has no end-of-text token; set tokenizer.eos_token."
        )
    text = "".join(message.text for message in example.prompt)
    prompt = np.array(tokenizer(text)["input_ids"], np.int32)
    if not len(prompt):
        raise BadRecord("prompt", "empty; a plain-text record needs one to start from.")
    branches = []
    for n in order:
        messages = example.responses[n].messages
        said = "".join(message.text for message in messages)
        if not said.strip():
            raise BadRecord(f"responses[{n}]", "empty. Remove the record or fill it.")
        out = tokenizer(said, add_special_tokens=False, return_offsets_mapping=True)
        tokens = np.array([*out["input_ids"], tokenizer.eos_token_id], np.int32)
        own = np.repeat(
            [m.role == "assistant" for m in messages], [len(m.text) for m in messages]
        )
        scored = [own[begin:end].any() for begin, end in out["offset_mapping"]]
        scored.append(messages[-1].role == "assistant")
        branches.append(Branch(tokens, np.array(scored, bool)))
    return prompt, np.zeros_like(prompt), None, branches


def _fit(prompt, branches, limits):
    """Apply the limits; returns prompt, branches and whether anything was cut."""
    longest = max(len(branch.tokens) for branch in branches)
    total = len(prompt) + sum(len(branch.tokens) for branch in branches)
    over = {
        "prompt": (len(prompt), limits.max_prompt_tokens),
        "response": (longest, limits.max_response_tokens),
        "group": (total, limits.max_group_tokens),
    }
    broken = {name: pair for name, pair in over.items() if pair[0] > pair[1]}
    if not broken:
        return prompt, branches, False
    name, (size, limit) = next(iter(broken.items()))
    if limits.truncation == "drop":
        raise TooLong(name, f"{size} tokens, limit max_{name}_tokens={limit}")
    prompt = prompt[-limits.max_prompt_tokens :]
    room = limits.max_group_tokens - len(prompt)
    cap = min(limits.max_response_tokens, longest)
    while cap > 1 and sum(min(len(b.tokens), cap) for b in branches) > room:
        cap -= 1
    if sum(min(len(b.tokens), cap) for b in branches) > room:
        raise TooLong(name, f"{size} tokens; no response fits beside its prompt")
    return prompt, [_shorten(branch, cap) for branch in branches], True


def _shorten(branch, cap):
    """At most `cap` tokens: the first ones, and the last scored one (end of turn).

    Raises TooLong: the cut would go through a medium.
    """
    if len(branch.tokens) <= cap:
        return branch
    keep = np.append(np.arange(cap - 1), np.flatnonzero(branch.scored)[-1])
    stream = branch.stream
    if stream is not None:
        if stream[cap - 1] > 0:
            raise TooLong("response", f"its cut at {cap} tokens goes through a medium")
        stream = stream[keep]
    return Branch(branch.tokens[keep], branch.scored[keep], stream)


def _numbers(example, order):
    """Margin, labels, mean ratings as arrays, in the order of the branches."""
    feedback, out = example.feedback, {}
    if feedback.margin is not None:
        out["margin"] = np.float32(feedback.margin)
    labels = [feedback.labels[n] for n in order if n < len(feedback.labels)]
    if labels and all(label is not None for label in labels):
        out["label"] = np.array(labels, np.float32)
    ratings = [[r.score for r in feedback.ratings if r.response == n] for n in order]
    if all(ratings):
        out["rating"] = np.array([np.mean(scores) for scores in ratings], np.float32)
    return out
