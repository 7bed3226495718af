"""Models that answer and judges that are asked, as a recipe names them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alanything_jax.data import store
from alanything_jax.data.files import digest, lines
from alanything_jax.data.template import TemplateError
from alanything_jax.generation.generate import encode_prompt, generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.pipelines.arena_battle import Prompt, with_bytes
from alanything_jax.rewards.judge import Endpoint, Judge, Local, Question
from alanything_jax.rewards.wire import shown
from alanything_jax.schema import Message, Part, Response, parts_of
from alanything_jax.training.run_dir import append

Model = Callable[[list[Prompt]], Sequence[Response | None]]


class JudgeDown(RuntimeError):
    """The judge does not answer: stop, and start again later."""


@dataclasses.dataclass(frozen=True)
class JudgeSource:
    """Who judges: a model in this process, or a server with OpenAI's interface.

    Attributes:
      model: what `ModelSource.path` may name; with a `url`, the name the server knows it
        by.
      url: base address, such as `http://localhost:8000/v1`; "" = in this process.
      api_key_env: NAME of the environment variable with the server's key; "" = no key.
      max_tokens: of a reply.
      max_tries: failed tries of a question before it is given up; for a `url`.
    """

    model: str
    url: str = ""
    api_key_env: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    max_tries: int = 5

    def __str__(self):
        """What replies depend on; nothing that may be secret."""
        limits = f"{self.max_tokens} tokens, temperature {self.temperature:g}"
        return f"{self.model} ({limits})"


def named(judge: JudgeSource | Judge) -> str:
    """What a run directory says of its judge."""
    return str(judge) if isinstance(judge, JudgeSource) else type(judge).__name__


def open_judge(source: JudgeSource | Judge, cache_dir: Path | None = None) -> Judge:
    """The judge a source names; a server has answered once, a model is loaded when asked.

    Raises JudgeDown: it cannot be asked; says what to change.
    """
    if not isinstance(source, JudgeSource):
        return _reading(source)
    try:
        if not source.url:
            sampling = Sampling(temperature=source.temperature)
            model = ModelSource(source.model)
            answer = stored_model(model, source.max_tokens, sampling)
            answer([])  # loads it
            local = Local(lambda asked: _texts(answer(asked)), name=source.model)
            return _reading(local)
        judge = Endpoint(**dataclasses.asdict(source), cache_dir=cache_dir)
        once = dataclasses.replace(judge, cache_dir=None, max_tries=2)
        ready = Question("ready", user("Are you ready? Answer in one word."))
        error = once([ready])["ready"].error
        # No text at all, as from a model that thinks to its limit, is an answer too.
        if error and "empty answer" not in error:
            raise OSError(f"{shown(source.url)}: {error}.")
        return _reading(judge)
    except (OSError, ValueError) as error:
        raise JudgeDown(
            f"the judge {source.model!r} cannot be asked: {error} Start its server, or "
            "change the recipe: --judge.url takes the base address of a server with "
            "OpenAI's chat completions, such as http://localhost:8000/v1, and "
            "--judge.model the name it serves (--judge.api-key-env names the variable "
            "with a key); without a url, --judge.model is an HF directory, hub id or "
            ".gguf file."
        ) from error


def _texts(responses):
    return [response and response.messages[-1].text.strip() for response in responses]


def _reading(judge) -> Judge:
    """The judge, asked with the bytes of media where a question names local files."""

    def whole(question):
        messages = (
            dataclasses.replace(m, parts=tuple(map(with_bytes, m.parts)))
            for m in question.messages
        )
        return dataclasses.replace(question, messages=tuple(messages))

    return lambda questions: judge(list(map(whole, questions)))


def user(text: str) -> Prompt:
    """A conversation of one text."""
    return (Message("user", (Part("text", text=text),)),)


def stored_model(
    source: ModelSource, max_new_tokens: int, sampling: Sampling, seed: int = 0
) -> Model:
    """A model on disk or on the hub, loaded when first asked; each call has its own seed.

    A prompt gets None where the model does not take its media, or cannot encode one.
    """
    loaded: list[Any] = []

    def readable(prompt):
        takes = {"text", *(loaded[0].coder.placeholders if loaded[0].coder else ())}
        kinds = {part.kind for part in parts_of(prompt)}
        if kinds <= {"text"} or not kinds <= takes:
            return kinds <= takes
        try:
            return encode_prompt(loaded[0], prompt) is not None
        except TemplateError:
            raise
        except ValueError:
            return False

    def answer(prompts):
        loaded[:] = loaded or [load_model(source)]
        good = [readable(prompt) for prompt in prompts]
        some = [p for p, fits in zip(prompts, good, strict=True) if fits]
        own = (seed + zlib.crc32(digest(some).encode())) % 2**31
        options = {"max_new_tokens": max_new_tokens, "sampling": sampling}
        done = iter(generate(loaded[0], some, seed=own, **options) if some else ())
        return [next(done)[0].response if fits else None for fits in good]

    return answer


def answer_all(
    models: Iterable[tuple[str, Model]],
    prompts: Mapping[str, Prompt],
    path: Path,
    batch_size: int,
    say: Callable[[str], None],
) -> dict[tuple[str, str], Response | None]:
    """{(model, prompt id): answer}, of `path` and of what is still to be asked.

    Answers are on disk batch by batch; a batch not whole there is asked again as a whole.
    """
    found, keys = kept(path), list(prompts)
    starts = range(0, len(keys), batch_size)
    groups = [keys[n : n + batch_size] for n in starts]
    for name, ask in models:
        todo = [s for s in groups if any((name, key) not in found for key in s)]
        for number, some in enumerate(todo, 1):
            got = list(ask([prompts[key] for key in some]))
            if len(got) != len(some) or not all(
                x is None or isinstance(x, Response) for x in got
            ):
                raise ValueError(
                    f"model {name} must give one Response (or None) for each of "
                    f"{len(some)} prompts; it gave {[type(x).__name__ for x in got]}."
                )
            for key, response in zip(some, got, strict=True):
                if (name, key) not in found:
                    line = {"model": name, "prompt": key}
                    append(path, line | {"response": store.to_json(response)})
                    found[name, key] = response
            if number == len(todo) or not number % 10:
                left = len(keys) - sum(map(len, todo[number:]))
                say(f"{name} answered {left} of {len(keys)} prompts")
    return found


def kept(path: Path) -> dict[tuple[str, str], Response | None]:
    """{(model, prompt id): Response or None} of the answers on disk."""
    found = ((line["model"], line["prompt"], line["response"]) for line in lines(path))
    return {(name, key): store.from_json(said) for name, key, said in found}
