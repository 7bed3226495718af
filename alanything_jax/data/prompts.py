"""Prompts to answer: what rollouts start from, and the record that a reward reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import EncodedGroup, TooLong
from alanything_jax.data.groups import Data, viewed
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.data.template import render_prompt
from alanything_jax.schema import Message


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      messages: the conversation. group: its tokens, without branches.
      record: what the source says beside it; `answer` is the preferred response's text,
        where there is one and the source has no field of that name.
    """

    messages: tuple[Message, ...]
    group: EncodedGroup
    record: dict[str, Any]


def load_prompts(
    data: Data,
    tokenizer: Any,
    coder: Coder | None,
    quarantine_path: Path | None,
    say: Callable[[str], None] = print,
    opener: int | None = None,
) -> list[Prompt]:
    """The prompts of a source, in its order; with `opener` as each one's last token.

    Raises:
      TooManyBad: more faulty records than `max_bad_share`.
      ValueError: no prompt is left.
    """
    quarantine = Quarantine(quarantine_path, data.max_bad_share)
    out = []
    for path, row, example in viewed(data, *data.paths):
        quarantine.seen += 1
        try:
            if isinstance(example, Exception):
                raise example
            if data.chat:
                tokens, soft = render_prompt(tokenizer, example.prompt, coder)
            else:
                text = "".join(message.text for message in example.prompt)
                tokens = np.array(tokenizer(text)["input_ids"], np.int32)
                soft = None
            if opener is not None:
                if soft is not None:
                    raise ValueError(
                        "prompt: it holds media that an encoder reads; for an answer that "
                        "is one medium give text alone."
                    )
                tokens = np.append(tokens, np.int32(opener))
            if len(tokens) > data.max_prompt_tokens:
                limit = f"limit max_prompt_tokens={data.max_prompt_tokens}"
                raise TooLong("prompt", f"{len(tokens)} tokens, {limit}")
        except TooLong as error:
            quarantine.add(path, row, error, "over a token limit")
        except ValueError as error:
            quarantine.add(path, row, error)
        else:
            group = EncodedGroup(example.id, tokens, (), prompt_soft=soft)
            out.append(Prompt(example.prompt, group, _record(example)))
    quarantine.close()
    say(
        f"prompts of {' + '.join(data.paths)}: {quarantine.seen} records, {len(out)} kept "
        f"({quarantine.summary()})"
    )
    if not out:
        raise ValueError(
            f"no prompt of {' + '.join(data.paths)} is left: raise max_prompt_tokens (now "
            f"{data.max_prompt_tokens}), or see {quarantine_path}."
        )
    return out


def _record(example):
    known = {"id": example.id}
    if example.responses:
        best = example.responses[example.feedback.chosen or 0]
        known["answer"] = "".join(message.text for message in best.messages)
    return known | dict(example.extra)
