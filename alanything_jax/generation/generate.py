"""Conversations in, answers out, of any modality: template, decode, detokenize."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.data import coder
from alanything_jax.data.formats import common
from alanything_jax.data.soft import Placement
from alanything_jax.data.template import TemplateError, render_prompt
from alanything_jax.generation import images
from alanything_jax.generation.decode import Completion, generate_tokens
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models.families import family_of
from alanything_jax.models.grammar import Grammar
from alanything_jax.schema import Message, Modality, Response

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to one prompt.

    Attributes:
      response: text and media parts. text: its text alone.
      logp: summed over `num_tokens`. finished: it ended by itself.
      tokens: [num_tokens] int32.
    """

    response: Response
    text: str
    logp: float
    num_tokens: int
    finished: bool
    tokens: np.ndarray = dataclasses.field(compare=False)


def generate(
    model: hub.Bundle | str,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(temperature=0.0),
    num_samples: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    output: Modality = "text",
    guidance: float = 5.0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[Answer]]:
    """Answers for every prompt, `num_samples` each.

    Args:
      model: a bundle, or what `hub.load` takes.
      prompts: text (one user message), lists of {"role", "content"}, or Messages.
      batch_size: rows decoded together; the last batch is filled up, so that one shape
        is compiled.
      output: "text" is whatever the model says, media among it; another makes each answer
        one medium of that kind, as long as it has to be.
      guidance: of models that draw with a head of their own (Janus): how far a picture is
        drawn by its prompt; 1 = as the model itself would.
      on_batch: told how many prompts are done.
    """
    bundle = hub.load(model) if isinstance(model, str) else model
    encoded = [encode_prompt(bundle, prompt) for prompt in prompts]
    complete, opener = _completer(bundle, output, guidance, max_new_tokens)
    if output != "text":
        encoded = [(_opened(tokens, soft, opener), None) for tokens, soft in encoded]
    flat = [prompt for prompt in encoded for _ in range(num_samples)]
    out: list[Answer] = []
    for first in range(0, len(flat), batch_size):
        some = flat[first : first + batch_size]
        full = len(flat) > batch_size
        tokens, soft = zip(
            *some, *[some[0]] * (batch_size - len(some)) * full, strict=True
        )
        done = complete(tokens, soft, sampling, seed + first)
        out += done[: len(some)]
        on_batch(len(out) // num_samples)
    return [out[n : n + num_samples] for n in range(0, len(out), num_samples)]


def _completer(bundle, output, guidance, max_new_tokens):
    """What makes answers of a batch; and the id that a prompt for `output` ends with.

    Raises ValueError: the model makes no such medium.
    """
    opener = None
    if output == "image" and family_of(bundle.model.family).drawing:

        def draw(tokens, soft, sampling, seed):
            del soft
            done = images.paint(
                bundle, tokens, sampling=sampling, guidance=guidance, seed=seed
            )
            return [_answer(c, (images.picture(bundle, c.tokens),)) for c in done]

        return draw, images.opener(bundle)
    if output != "text":
        block = (bundle.coder.grammar if bundle.coder else Grammar(0)).block(output)
        opener, max_new_tokens = block.open_id, block.total

    def complete(tokens, soft, sampling, seed):
        done = generate_tokens(
            bundle.params,
            bundle.model.config,
            tokens,
            soft=soft,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_ids=eos_ids(bundle),
            seed=seed,
        )
        if opener is not None:
            done = [_medium(block, completion) for completion in done]
        return [answer(bundle, completion) for completion in done]

    return complete, opener


def _opened(tokens, soft, opener):
    if soft is not None:
        raise ValueError(
            "a prompt for a medium holds media that an encoder reads: give text alone."
        )
    return np.append(tokens, np.int32(opener))


def _medium(block, completion):
    """What was said after an opener: the opener and its block."""
    count = block.fits(completion.tokens) + block.stop
    return Completion(
        np.append(np.int32(block.open_id), completion.tokens[:count]),
        np.append(np.float32(0), completion.logps[:count]),
        finished=True,
    )


def encode_prompt(
    bundle: hub.Bundle, prompt: Prompt
) -> tuple[np.ndarray, Placement | None]:
    """Token ids of a conversation up to the assistant's header, and its soft media.

    Raises:
      TemplateError: no tokenizer, or it has no chat template.
      ValueError: a medium that is broken or that the model does not take.
    """
    if bundle.tokenizer is None or not bundle.tokenizer.chat_template:
        raise TemplateError(
            "the model has no tokenizer with a chat template, so a conversation cannot be "
            "rendered. Use an instruction-tuned model, or put a chat_template.jinja beside "
            "its weights."
        )
    return render_prompt(bundle.tokenizer, messages_of(prompt), bundle.coder)


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt in any of its forms as Messages."""
    if not isinstance(prompt, str) and all(isinstance(m, Message) for m in prompt):
        return tuple(prompt)
    return common.messages(prompt, "prompt", "user")


def eos_ids(bundle: hub.Bundle) -> list[int]:
    """Ids that end an answer: generation config's, config's and the tokenizer's."""
    found = []
    for config in (bundle.generation_config or {}, bundle.hf_config):
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    if bundle.tokenizer is not None:
        found.append(bundle.tokenizer.eos_token_id)
    return sorted({int(token) for token in found if token is not None})


def answer(bundle: hub.Bundle, completion: Completion) -> Answer:
    """Text and media of a completion, and its figures."""
    parts = coder.parts(completion.tokens, bundle.tokenizer, bundle.coder)
    return _answer(completion, parts)


def _answer(completion, parts):
    response = Response((Message("assistant", parts),))
    return Answer(
        response,
        response.messages[0].text,
        float(completion.logps.sum()),
        len(completion.tokens),
        completion.finished,
        completion.tokens,
    )
