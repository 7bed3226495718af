"""Our models inside lm-evaluation-harness and lmms-eval: their tasks, prompts and metrics.

Both packages are imported when asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alanything_jax import hub
from alanything_jax.evaluation.harness_calls import (
    Asked,
    asked,
    continuations,
    loglikelihoods,
)
from alanything_jax.generation.generate import generate


def _by_kwargs(
    requests: Sequence[Any], place: int, say: Callable[[Asked, list[Any]], list[str]]
) -> list[str]:
    """What `say` answers to requests with equal `args[place]`, in the requests' order."""
    alike: dict[str, list[int]] = {}
    for n, request in enumerate(requests):
        alike.setdefault(repr(request.args[place]), []).append(n)
    out = [""] * len(requests)
    for some in alike.values():
        how = asked(requests[some[0]].args[place])
        answers = say(how, [requests[n].args for n in some])
        for n, text in zip(some, answers, strict=True):
            out[n] = text
    return out


def lm_eval_model(bundle: hub.Bundle, batch_size: int = 32, seed: int = 0) -> Any:
    """An `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
      batch_size: rows that are read or decoded together. seed: of answers that are drawn.

    Raises:
      ImportError: lm_eval is not installed. ValueError: the bundle has no tokenizer.
    """
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ImportError(
            "lm_eval is not installed: pip install 'alanything_jax[harness]'"
        ) from error
    from tqdm import tqdm

    if bundle.tokenizer is None:
        raise ValueError(f"{bundle.source} has no tokenizer: put its files beside it.")

    class AlanythingLM(TemplateLM):
        """Ours; tokenization and templates are lm_eval's own."""

        tokenizer = bundle.tokenizer
        max_length = bundle.model.config.max_positions
        eot_token_id = bundle.tokenizer.eos_token_id
        tokenizer_name = bundle.source.replace("/", "__")

        @property
        def prefix_token_id(self):
            first = self.tokenizer.bos_token_id
            return self.eot_token_id if first is None else first

        def tok_encode(self, string, add_special_tokens=None, **_):
            begin = self.tokenizer.decode([self.prefix_token_id])
            if add_special_tokens is None:
                # A chat template has written it already.
                add_special_tokens = not string.startswith(begin)
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
            with tqdm(total=len(requests), disable=disable_tqdm) as bar:
                pairs = [request[1:] for request in requests]
                return loglikelihoods(bundle, pairs, batch_size, bar.update)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            windows, owner = [], []
            for n, request in enumerate(requests):
                cut = utils.get_rolling_token_windows(
                    self.tok_encode(request.args[0]),
                    self.prefix_token_id,
                    self.max_length,
                    context_len=1,
                )
                windows += [(None, *utils.make_disjoint_window(w)) for w in cut]
                owner += [n] * (len(windows) - len(owner))
            found = self._loglikelihood_tokens(windows, disable_tqdm)
            sums = [logp for logp, _ in found]
            return np.bincount(owner, sums, len(requests)).tolist()

        def generate_until(self, requests, disable_tqdm=False):
            def say(how, args):
                prompts = [self.tok_encode(context) for context, _ in args]
                prompts = [p or [self.prefix_token_id] for p in prompts]
                return continuations(bundle, prompts, how, batch_size, seed, bar.update)

            with tqdm(total=len(requests), disable=disable_tqdm) as bar:
                return _by_kwargs(requests, 1, say)

    return AlanythingLM()


def lmms_eval_model(bundle: hub.Bundle, batch_size: int = 8, seed: int = 0) -> Any:
    """An `lmms_eval.api.model.lmms`, for `lmms_eval.evaluator.simple_evaluate(model=...)`.

    Its tasks' messages, with their pictures, videos and sounds, go through our chat
    template and preprocessing. Tasks that generate, in one round; not those of
    log-likelihoods, of several rounds, or that ask for pictures.

    Raises ImportError: lmms_eval is not installed.
    """
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise ImportError(
            "lmms_eval is not installed: pip install 'alanything_jax[lmms]'"
        ) from error
    from tqdm import tqdm

    class AlanythingLmms(lmms):
        """Ours; it takes messages, not texts and a list of media."""

        is_simple = False

        def generate_until(self, requests):
            def some(how, args, first):
                prompts = [
                    _messages(messages(self.task_dict[task][split][row]))
                    for _, messages, _, row, task, split in args
                ]
                answers = generate(
                    bundle,
                    prompts,
                    max_new_tokens=how.max_new_tokens,
                    sampling=how.sampling,
                    batch_size=batch_size,
                    seed=seed + first,
                    stop=how.until,
                )
                return [answer.text for (answer,) in answers]

            def say(how, args):
                # Not the media of a whole task at once.
                size, out = 8 * batch_size, []
                for n in tqdm(range(0, len(args), size)):
                    out += some(how, args[n : n + size], n)
                return out

            return _by_kwargs(requests, 2, say)

        def loglikelihood(self, requests):
            raise NotImplementedError("Give a task of output_type generate_until.")

        generate_until_multi_round = loglikelihood

    return AlanythingLmms()


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lmms_eval's messages with the bytes of pictures in place of PIL's objects."""
    from PIL import Image

    def plain(part):
        if not isinstance(part.get("url"), Image.Image):
            return part
        file = io.BytesIO()
        part["url"].convert("RGB").save(file, "PNG")
        return {**part, "url": file.getvalue()}

    return [{**m, "content": [plain(part) for part in m["content"]]} for m in messages]
