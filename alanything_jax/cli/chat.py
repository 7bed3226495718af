"""`alanything chat --model M`: talk to it; /reset forgets, /quit ends."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import tyro

from alanything_jax import hub
from alanything_jax.generation.decode import generate_tokens
from alanything_jax.generation.generate import encode_prompt, eos_ids, streamer
from alanything_jax.generation.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class Options:
    """A conversation in the terminal.

    Attributes:
      model: Hugging Face directory, hub id or .gguf file.
      system: a system message.
    """

    model: str
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


def main(argv: Sequence[str]) -> int:
    """Read, answer, until the input ends."""
    options = tyro.cli(Options, prog="alanything chat", args=list(argv))
    bundle = hub.load(options.model)
    start = [{"role": "system", "content": options.system}] if options.system else []
    history = list(start)
    print(f"talking to {options.model}; /reset forgets, /quit ends", flush=True)
    while True:
        try:
            said = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if said == "/quit":
            return 0
        if said == "/reset":
            history = list(start)
        elif said:
            history.append({"role": "user", "content": said})
            try:
                text = answer(bundle, history, options)
            except KeyboardInterrupt:
                text = "(stopped)"
                print()
            history.append({"role": "assistant", "content": text})


def answer(bundle: hub.Bundle, history: list[dict], options: Options) -> str:
    """Stream one answer to the terminal and return it."""

    def write(text):
        sys.stdout.write(text)
        sys.stdout.flush()

    prompt, soft = encode_prompt(bundle, history)
    sys.stdout.write("model> ")
    (said,) = generate_tokens(
        bundle.params,
        bundle.model.config,
        [prompt],
        soft=[soft],
        max_new_tokens=options.max_new_tokens,
        sampling=Sampling(options.temperature, options.top_p),
        eos_ids=eos_ids(bundle),
        seed=options.seed + len(history),
        on_tokens=streamer(bundle.tokenizer, write),
    )
    print(flush=True)
    return bundle.tokenizer.decode(said.tokens.tolist(), skip_special_tokens=True)
