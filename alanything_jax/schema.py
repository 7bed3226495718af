"""The records everything speaks: `Example` before tokenization, `Batch` after it.

An `Example` is one prompt with K responses and what people (or critics) said of them.
A `Batch` is many such groups laid out in rows of T tokens: `prompt, response 1, ...,
response K`, group after group. Nothing here knows an algorithm, a model or a tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.struct
import jax
import numpy as np

Modality = Literal["text", "image", "audio", "video"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One piece of a message: text, or media given as bytes, array or URI."""

    kind: Modality
    text: str | None = None
    data: bytes | np.ndarray | None = None
    uri: str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn. `role` is the chat template's: system, user, assistant, tool."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined; media parts are not in it."""
        return "".join(part.text or "" for part in self.parts if part.kind == "text")


def parts_of(messages: Iterable[Message]) -> list[Part]:
    """The parts of several messages, in order."""
    return [part for message in messages for part in message.parts]


@dataclasses.dataclass(frozen=True)
class Response:
    """One answer: usually one assistant message, or several turns with tool calls."""

    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Rating:
    """A score of one response along one named dimension, with its rationale."""

    response: int
    dimension: str
    score: float
    rationale: str | None = None
    rater: str | None = None


@dataclasses.dataclass(frozen=True)
class Critique:
    """Language feedback: what is wrong with a response, and a refined answer if any.

    `response` is None where the feedback is about all responses together.
    """

    text: str
    response: int | None = None
    dimension: str | None = None
    refinement: Response | None = None
    rater: str | None = None


@dataclasses.dataclass(frozen=True)
class Feedback:
    """Everything said about the responses of one prompt.

    Attributes:
      chosen: index of the preferred response, None where none is.
      labels: per response True (desirable), False (undesirable) or None; KTO's data.
      margin: by how much the chosen response is better, in the source's unit.
      ratings: per response and dimension.
      critiques: language feedback and refinements.
      rater: who gave the choice ("human", a model's name).
    """

    chosen: int | None = None
    labels: tuple[bool | None, ...] = ()
    margin: float | None = None
    ratings: tuple[Rating, ...] = ()
    critiques: tuple[Critique, ...] = ()
    rater: str | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt, its K responses, the feedback on them.

    `extra` keeps every field of the source that has no place above: nothing a source
    provides is dropped.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    feedback: Feedback = Feedback()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Medium:
    """One medium on its way to an encoder, which makes soft tokens of it.

    Attributes:
      encoder: its name in `Batch.media`, such as "vision".
      arrays: name -> [p, ...], one entry a patch (or a frame of sound). "patches" [p, d]
        float32 and "segment" [p] int32 (1, 2, ...: patches of one number see each other)
        are among them.
      outputs: [s] int32, which of the encoder's outputs for these patches stand at the
        medium's s placeholders, in order.
      grid: [s, 3] int32, place (t, h, w) of each output; None where order is all there is.
      times: of a video, the second that each temporal patch shows.
    """

    kind: Modality
    encoder: str
    arrays: Mapping[str, np.ndarray]
    outputs: np.ndarray
    grid: np.ndarray | None = None
    times: tuple[float, ...] = ()


@flax.struct.dataclass
class Batch:
    """One microbatch: B rows of T tokens holding many groups. Shapes in brackets.

    A query q sees a key k iff both are of one group, branch[k] is 0 or branch[q], and
    index[k] <= index[q] or span[k] == span[q] > 0. Where a token lies in the row has no
    meaning.

    Attributes:
      tokens: [B, T] int32 ids; a media position holds the family's placeholder id.
      group: [B, T] int32, 0 = padding, else which group of the row.
      branch: [B, T] int32, 0 = prompt, 1..K = response.
      index: [B, T] int32, 0, 1, 2, ... along prompt + own branch: order and distance.
      position: [B, 3, T] int32 rotary positions; three equal rows unless M-RoPE.
      stream: [B, T] int32, which embedding table feeds this position (0 = text).
      span: [B, T] int32, 0, or the id of a block that attends both ways inside.
      source: [B, T] int32, place in the row of the hidden state that predicts this
        token; -1 = not scored.
      response: [B, T] int32, which of the microbatch's R responses a scored token
        belongs to; -1 elsewhere.
      table: [G, K] int32, flat response number of each group's branches; -1 = absent.
      numbers: named float arrays that algorithms read: of shape [G] or [G, K] (such as
        `margin`, `label`), [R], or [B, T] (such as `reference_logps`).
      media: per encoder its patches, segments and slots; empty for text.
    """

    tokens: jax.Array
    group: jax.Array
    branch: jax.Array
    index: jax.Array
    position: jax.Array
    stream: jax.Array
    span: jax.Array
    source: jax.Array
    response: jax.Array
    table: jax.Array
    numbers: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    media: dict[str, dict[str, jax.Array]] = flax.struct.field(default_factory=dict)

    @property
    def scored(self) -> jax.Array:
        """[B, T] bool: the tokens a loss may read."""
        return self.source >= 0

    @property
    def num_responses(self) -> int:
        """R = G * K, the microbatch's capacity for responses."""
        return self.table.shape[0] * self.table.shape[1]
