"""What benchmark harnesses ask of a model: log-likelihoods, and texts that it goes on with.

A context is computed once for all its continuations: it is the prompt of a group whose
branches they are, and groups share rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alanything_jax import hub
from alanything_jax.data import packing
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.generation.decode import bucket, generate_tokens
from alanything_jax.generation.generate import answer, eos_ids, stop_where
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models import decoder, heads
from alanything_jax.models.config import DecoderConfig
from alanything_jax.schema import Batch

# Contexts laid out together, the longest first.
_TOGETHER = 256
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a task asks of generation; `until` are texts that end an answer."""

    sampling: Sampling
    until: tuple[str, ...]
    max_new_tokens: int


def asked(kwargs: Mapping[str, Any], max_new_tokens: int = 256) -> Asked:
    """Read a task's `generation_kwargs`; without do_sample or a temperature, greedy.

    Raises ValueError: something that our generation does not have, such as beams.
    """
    left = dict(kwargs)
    until = left.pop("until", None) or ()
    limits = [left.pop(name, None) for name in _LIMITS]
    temperature = float(left.pop("temperature", None) or 0.0)
    # Told to draw and not how: as transformers does, at temperature 1.
    drawn = left.pop("do_sample", None)
    temperature = 0.0 if drawn is False else temperature or float(bool(drawn))
    beams = left.pop("num_beams", None) or 1
    left.pop("image_aspect_ratio", None)  # Of lmms_eval, to LLaVA's own repository.
    cuts = {n: left.pop(n, None) for n in ("top_p", "top_k", "min_p")}
    if not temperature:
        cuts = {}  # Tasks write top_p: 0 beside greedy decoding, where it says nothing.
    cuts["repetition_penalty"] = left.pop("repetition_penalty", None)
    if left or beams != 1:
        raise ValueError(
            f"generation_kwargs {dict(kwargs)}: here are until, {', '.join(_LIMITS)}, "
            "do_sample, temperature, top_p, top_k, min_p and repetition_penalty; no "
            "beams. Override the task's with the recipe's gen_kwargs."
        )
    said = {name: value for name, value in cuts.items() if value is not None}
    return Asked(
        Sampling(temperature, **said),
        (until,) if isinstance(until, str) else tuple(filter(None, until)),
        next((int(limit) for limit in limits if limit is not None), max_new_tokens),
    )


def loglikelihoods(
    bundle: hub.Bundle,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 32,
    told: Callable[[int], None] = lambda more: None,
) -> list[tuple[float, bool]]:
    """Per (context, continuation), of token ids: log p, and whether greedy would say it.

    As lm_eval does, a context too long loses its beginning: all tokens but the last of
    the continuation are at most `max_positions`.

    Args:
      batch_size: rows read together. told: gets how many more pairs are done.

    Raises ValueError: an empty context, or a continuation that is empty or too long.
    """
    limit, wanted = bundle.model.config.max_positions, {}
    for n, (context, said) in enumerate(pairs):
        if not context or not 0 < len(said) <= limit:
            raise ValueError(
                f"request {n}: a context of {len(context)} tokens and a continuation of "
                f"{len(said)}; allowed are 1 or more, and 1 to {limit}."
            )
        context = tuple(context[-(limit + 1 - len(said)) :])
        wanted.setdefault(context, []).append(n)
    groups = []
    for context, numbers in wanted.items():
        tokens = [np.array(pairs[n][1], np.int32) for n in numbers]
        branches = tuple(Branch(t, np.ones(len(t), bool)) for t in tokens)
        groups.append(
            (EncodedGroup("", np.array(context, np.int32), branches), numbers)
        )
    groups.sort(key=lambda item: -packing.group_length(item[0]))
    out: list[Any] = [None] * len(pairs)
    for first in range(0, len(groups), _TOGETHER):
        some, numbers = zip(*groups[first : first + _TOGETHER], strict=True)
        layout = _layout(some, batch_size, limit)
        for rows in packing.plan(some, layout, couples=False):
            batch = packing.lay_out(some, rows, layout)
            read = _read(bundle.params, bundle.model.config, batch)
            logps, best = (packing.take(some, rows, np.asarray(x)) for x in read)
            for (g, b), array in logps.items():
                total = float(array.astype(np.float64).sum())
                out[numbers[g][b]] = total, bool(best[g, b].all())
            told(len(logps))
    return out


def _layout(groups, batch_size, limit):
    """Rows that hold the longest branch, and whole groups where the model could."""
    whole = max(map(packing.group_length, groups))
    alone = max(len(g.prompt) + max(len(b.tokens) for b in g.branches) for g in groups)
    most = bucket(max(len(g.branches) for g in groups), 1)
    rows = min(batch_size, bucket(len(groups), 1))
    row_tokens = bucket(max(alone, min(whole, limit)))
    return packing.Layout(rows, row_tokens, _TOGETHER, most)


@functools.partial(jax.jit, static_argnames="cfg")
def _read(params: Any, cfg: DecoderConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Of every scored token its log-prob, and whether it is the likeliest, [B, T]."""
    dtype = params["embed"]["text"]["table"].dtype
    states = decoder.hidden(
        params, cfg, batch, compute_dtype=dtype, backend="blockwise"
    )
    best, _ = heads.top_logps(params, cfg, states, batch, 1, cfg.vocab_size)
    logps = heads.token_logps(params, cfg, states, batch)
    return logps, best[..., 0] == batch.tokens


def continuations(
    bundle: hub.Bundle,
    prompts: Sequence[Sequence[int]],
    how: Asked,
    batch_size: int = 32,
    seed: int = 0,
    told: Callable[[int], None] = lambda more: None,
) -> list[str]:
    """What the model says after each prompt, up to a text of `until`, special or not.

    Of a prompt that leaves no room the end is kept.

    Raises ValueError: there is no room for any prompt beside `max_new_tokens`.
    """
    room = bundle.model.config.max_positions - how.max_new_tokens
    if room < 1:
        raise ValueError(
            f"{how.max_new_tokens} new tokens leave no room for a prompt in the model's "
            f"{bundle.model.config.max_positions} positions: lower max_gen_toks."
        )

    def holds(tokens):
        text = bundle.tokenizer.decode(tokens)
        return any(end in text for end in how.until)

    done = generate_tokens(
        bundle.params,
        bundle.model.config,
        [np.array(prompt[-room:], np.int32) for prompt in prompts],
        slots=batch_size,
        max_new_tokens=how.max_new_tokens,
        sampling=how.sampling,
        eos_ids=eos_ids(bundle),
        seed=seed,
        on_done=lambda number, completion: told(1),
        stop=stop_where(holds) if how.until else None,
    )
    return [_cut(answer(bundle, one).text, how.until) for one in done]


def _cut(text, until):
    return text[: min([text.find(end) for end in until if end in text] or [None])]
