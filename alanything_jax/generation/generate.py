"""Conversations in, answers out: template, decode, detokenize."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.data.template import TemplateError
from alanything_jax.generation.decode import Completion, generate_tokens
from alanything_jax.generation.sampler import Sampling

Prompt = str | Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to one prompt.

    Attributes:
      text: without its end-of-turn token. logp: summed over `num_tokens`.
      finished: it ended by itself.
    """

    text: str
    logp: float
    num_tokens: int
    finished: bool


def generate(
    model: hub.Bundle | str,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(temperature=0.0),
    num_samples: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[Answer]]:
    """Answers for every prompt, `num_samples` each.

    Args:
      model: a bundle, or what `hub.load` takes.
      prompts: text (one user message) or lists of {"role", "content"}.
      batch_size: prompts decoded together.
      on_batch: told how many prompts are done.
    """
    bundle = hub.load(model) if isinstance(model, str) else model
    encoded = [encode_prompt(bundle.tokenizer, prompt) for prompt in prompts]
    flat = [ids for ids in encoded for _ in range(num_samples)]
    out: list[Answer] = []
    for first in range(0, len(flat), batch_size):
        some = flat[first : first + batch_size]
        done = generate_tokens(
            bundle.params,
            bundle.model.config,
            some,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_ids=eos_ids(bundle),
            seed=seed + first,
        )
        out += [answer(bundle.tokenizer, completion) for completion in done]
        on_batch(len(out) // num_samples)
    return [out[n : n + num_samples] for n in range(0, len(out), num_samples)]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> np.ndarray:
    """Token ids of a conversation up to the assistant's header.

    Raises:
      TemplateError: no tokenizer, or it has no chat template.
    """
    if tokenizer is None or not tokenizer.chat_template:
        raise TemplateError(
            "the model has no tokenizer with a chat template, so a conversation cannot be "
            "rendered. Use an instruction-tuned model, or put a chat_template.jinja beside "
            "its weights."
        )
    chat = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else list(prompt)
    )
    text = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def eos_ids(bundle: hub.Bundle) -> list[int]:
    """Ids that end an answer: generation config's, config's and the tokenizer's."""
    found = []
    for config in (bundle.generation_config or {}, bundle.hf_config):
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    if bundle.tokenizer is not None:
        found.append(bundle.tokenizer.eos_token_id)
    return sorted({int(token) for token in found if token is not None})


def answer(tokenizer: Any, completion: Completion) -> Answer:
    """Text of a completion, and its figures."""
    text = tokenizer.decode(completion.tokens.tolist(), skip_special_tokens=True)
    return Answer(
        text, float(completion.logps.sum()), len(completion.tokens), completion.finished
    )
