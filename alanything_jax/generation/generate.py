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
from alanything_jax.generation.decode import CHUNK, Completion, generate_tokens
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models.families import family_of
from alanything_jax.models.grammar import Block, Grammar
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
    stop: Sequence[str] = (),
    stop_tokens: Sequence[str] = (),
    output: Modality = "text",
    guidance: float = 5.0,
    on_batch: Callable[[int], None] = lambda done: None,
    on_tokens: Callable[[np.ndarray], None] | None = None,
) -> list[list[Answer]]:
    """Answers for every prompt, `num_samples` each.

    Args:
      model: a bundle, or what `hub.load` takes.
      prompts: text (one user message), lists of {"role", "content"}, or Messages.
      batch_size: rows decoded together; as they end, those that wait take their places.
      stop: an answer ends when its text holds one of these: `text` ends before it,
        `tokens` with the token that completed it, so that log-probs are of what was said.
      stop_tokens: tokens that end an answer, beside those that the model names.
      output: "text" is whatever the model says, media among it; another makes each answer
        one medium of that kind, as long as it has to be.
      guidance: of models that draw with a head of their own (Janus): how far a picture is
        drawn by its prompt; 1 = as the model itself would.
      on_batch: told how many prompts are done.
      on_tokens: gets the first answer's tokens as they come (`streamer` makes it text).

    Raises ValueError: the tokenizer lacks a stop token; a prompt has no room.
    """
    bundle = hub.load(model) if isinstance(model, str) else model
    encoded = [encode_prompt(bundle, prompt) for prompt in prompts]
    told = _teller(num_samples, on_batch)
    if output == "image" and family_of(bundle.model.family).drawing:
        opener = images.opener(bundle)
        tokens = [_opened(*prompt, opener) for prompt in encoded]
        flat = [prompt for prompt in tokens for _ in range(num_samples)]
        out = []
        for first in range(0, len(flat), batch_size):
            done = images.paint(
                bundle,
                flat[first : first + batch_size],
                sampling=sampling,
                guidance=guidance,
                seed=seed + first,
            )
            out += [_answer(c, (images.picture(bundle, c.tokens),)) for c in done]
            told(len(done))
    else:
        block = None
        if output != "text":
            block = (bundle.coder.grammar if bundle.coder else Grammar(0)).block(output)
            encoded = [(_opened(*one, block.open_id), None) for one in encoded]
        tokens, soft = zip(*encoded, strict=True) if encoded else ((), ())
        done = generate_tokens(
            bundle.params,
            bundle.model.config,
            tokens,
            soft=soft,
            samples=num_samples,
            slots=batch_size,
            max_new_tokens=block.total if block else max_new_tokens,
            sampling=sampling,
            eos_ids=eos_ids(bundle, stop_tokens),
            seed=seed,
            on_tokens=on_tokens,
            on_done=lambda number, completion: told(1),
            stop=_stopper(bundle, stop) if stop else None,
        )
        if block:
            done = [_medium(block, completion) for completion in done]
        out = [_cut(answer(bundle, completion), stop) for completion in done]
    return [out[n : n + num_samples] for n in range(0, len(out), num_samples)]


def _teller(num_samples, on_batch):
    """Counts answers that are done, and tells of prompts."""
    done = 0

    def told(more):
        nonlocal done
        done += more
        on_batch(done // num_samples)

    return told


def _stopper(bundle, stop):
    """For `generate_tokens`: how many tokens it takes to say one of the strings."""
    grammar = bundle.model.config.grammar
    first, end = grammar.text if grammar else (0, bundle.model.config.vocab_size)

    def holds(tokens):
        low, high = tokens >= first, tokens < end
        tokens = tokens[low | high if first > end else low & high].tolist()
        text = bundle.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(string in text for string in stop)

    return stop_where(holds)


def stop_where(
    holds: Callable[[np.ndarray], bool],
) -> Callable[[int, np.ndarray], int | None]:
    """For `generate_tokens`: a row is over at the first of its tokens where `holds`."""

    def stop(number, tokens):
        del number
        if not holds(tokens):
            return None
        # What was said before this chunk did not hold it.
        sizes = range(max(1, len(tokens) - CHUNK), len(tokens))
        return next((n for n in sizes if holds(tokens[:n])), len(tokens))

    return stop


def streamer(
    tokenizer: Any, write: Callable[[str], None]
) -> Callable[[np.ndarray], None]:
    """For `on_tokens`: writes text as soon as its tokens make whole characters."""
    tokens: list[int] = []
    shown = 0

    def show(new):
        nonlocal shown
        tokens.extend(int(token) for token in new)
        # An unfinished character decodes as U+FFFD: wait for its rest.
        ready = tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
        write(ready[shown:])
        shown = max(shown, len(ready))

    return show


def _cut(answer, stop):
    """The answer with its text, in whatever part it stands, up to a stop string."""
    (message,) = answer.response.messages
    parts = []
    for part in message.parts:
        found = [part.text.find(s) for s in stop if s in part.text] if part.text else []
        if found:
            parts.append(dataclasses.replace(part, text=part.text[: min(found)]))
            break
        parts.append(part)
    else:
        return answer
    response = Response((Message("assistant", tuple(parts)),))
    text = response.messages[0].text
    return dataclasses.replace(answer, response=response, text=text)


def _opened(tokens, soft, opener):
    if soft is not None:
        raise ValueError(
            "a prompt for a medium holds media that an encoder reads: give text alone."
        )
    return np.append(tokens, np.int32(opener))


def block_of(block: Block, completion: Completion) -> Completion:
    """What was said after an opener, up to its block's end."""
    count = block.fits(completion.tokens) + block.stop
    return Completion(completion.tokens[:count], completion.logps[:count], True)


def _medium(block, completion):
    """What was said after an opener: the opener and its block."""
    said = block_of(block, completion)
    return Completion(
        np.append(np.int32(block.open_id), said.tokens),
        np.append(np.float32(0), said.logps),
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


def eos_ids(bundle: hub.Bundle, also: Sequence[str] = ()) -> list[int]:
    """Ids that end an answer: generation config's, config's, the tokenizer's, and `also`.

    Raises ValueError: the tokenizer lacks a token of `also`.
    """
    found = []
    for config in (bundle.generation_config or {}, bundle.hf_config):
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    if bundle.tokenizer is not None:
        found.append(bundle.tokenizer.eos_token_id)
    for name in also:
        token = bundle.tokenizer.convert_tokens_to_ids(name)
        if token is None or bundle.tokenizer.convert_ids_to_tokens(token) != name:
            raise ValueError(
                f"stop token {name!r} is not in the tokenizer's vocabulary: name one of "
                f"its tokens, such as {bundle.tokenizer.all_special_tokens}, or give the "
                "text as a stop string."
            )
        found.append(token)
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
