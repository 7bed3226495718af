"""What answers the prompts of a rollout, and what the trainer says of the answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.prompts import Prompt
from alanything_jax.data.soft import Placement
from alanything_jax.generation import external
from alanything_jax.generation.decode import Completion, generate_tokens
from alanything_jax.generation.generate import block_of, eos_ids
from alanything_jax.models import lora
from alanything_jax.models.params import unflatten
from alanything_jax.ops import policy
from alanything_jax.sharding import pjit
from alanything_jax.training import reference, rollout, rollout_file
from alanything_jax.training.prepare import Prepared
from alanything_jax.training.step import Flat, run_role


def merged(prepared: Prepared, options: rollout.Rollout, params: Flat) -> Any:
    """What an engine is handed: the policy's weights on this host, the adapter in them.

    All processes call it. Raises ValueError: the model says more than text.
    """
    tree, program = unflatten(params), prepared.program
    if program.config.grammar is not None and program.config.grammar.blocks:
        raise ValueError(
            f"rollout.engine {options.engine.url} says text alone, and this model more: "
            "leave rollout.engine out, and the answers are made here."
        )
    whole = tree[program.trained]
    if "lora" in tree:
        whole = lora.merge(whole, tree["lora"], program.lora.scale)
    return jax.tree.map(pjit.fetch, whole)


def served(
    prepared: Prepared, options: rollout.Rollout, weights: Any, version: int
) -> rollout.Complete:
    """Answers by `options.engine`, which is handed `merged` weights under this version.

    Raises ValueError: prompts with media, which the engines' servers do not take;
    external.EngineError: it fails, or serves others.
    """
    bundle = dataclasses.replace(prepared.bundle, params=weights)
    external.push(options.engine, bundle, version)

    def complete(groups, samples, seed):
        media = [group.id for group in groups if group.prompt_soft is not None]
        if media:
            raise ValueError(
                f"prompts {media[:3]} hold media, which rollout.engine does not take: "
                "leave rollout.engine out, and the answers are made here."
            )
        return external.complete(
            options.engine,
            [group.prompt for group in groups],
            version=version,
            vocab_size=prepared.program.config.vocab_size,
            samples=samples,
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling,
            seed=seed,
            eos_ids=eos_ids(prepared.bundle),
        )

    return complete


def own(prepared: Prepared, options: rollout.Rollout, params: Flat) -> rollout.Complete:
    """Answers by the policy of these parameters, where they lie."""
    tree, program = unflatten(params), prepared.program
    grammar = program.config.grammar
    block = None if options.output == "text" else grammar.block(options.output)

    def complete(groups, samples, seed):
        made = generate_tokens(
            tree[program.trained],
            program.config,
            [group.prompt for group in groups],
            soft=[group.prompt_soft for group in groups],
            samples=samples,
            slots=options.slots,
            max_new_tokens=block.total if block else options.max_new_tokens,
            sampling=options.sampling,
            eos_ids=eos_ids(prepared.bundle),
            seed=seed,
            lora=tree.get("lora"),
            lora_scale=program.lora.scale if program.lora else 1.0,
        )
        if block:
            return [block_of(block, completion) for completion in made]
        prompts = [group.prompt for group in groups for _ in range(samples)]
        pairs = zip(made, prompts, strict=True)
        return [rollout.whole(completion, p, grammar) for completion, p in pairs]

    return complete


def asking(ask: Callable[..., Any], prompts: Sequence[Prompt]) -> rollout.Complete:
    """Answers by `ask`, which gets prompts as arrays and hands them to what `asked` made.

    Media stay where they are: every process has its own, told by their prompt's place.
    """
    views = [prompt.group.prompt_soft for prompt in prompts]
    places = {id(view.media): n for n, view in enumerate(views) if view and view.media}

    def told(group):
        view = group.prompt_soft
        if view is None:
            return [group.prompt, -1, None, None]
        place = places[id(view.media)] if view.media else -1
        return [group.prompt, place, view.position, view.span]

    def complete(groups, samples, seed):
        return ask([told(group) for group in groups], samples, seed)

    return complete


def asked(
    complete: rollout.Complete, prompts: Sequence[Prompt]
) -> Callable[..., list[Completion]]:
    """See `asking`."""

    def group(tokens, place, position, span):
        media = prompts[place].group.prompt_soft.media if place >= 0 else ()
        view = None if position is None else Placement(media, position, span)
        return EncodedGroup("", tokens, (), prompt_soft=view)

    def answer(told, samples, seed):
        return complete([group(*one) for one in told], samples, seed)

    return answer


def record(
    prepared: Prepared,
    options: rollout.Rollout,
    params: Flat,
    prompts: Sequence[Prompt],
    rolled: rollout_file.Rolled,
) -> rollout_file.Rolled:
    """The rollout with what its recorded roles say of every token."""
    program = prepared.program
    groups = rollout.encode(rolled, options, prompts, program.config.grammar)
    plain = dataclasses.replace(prepared.layout, numbers=())
    out = {}

    def over_tokens(read: Callable[[Flat, Any], jax.Array]):
        def forward(batch):
            placed = pjit.place_batch(batch, prepared.mesh, prepared.rules, whole=True)
            return pjit.fetch(read(params, placed))

        return reference.compute(forward, groups, plain)

    for role in program.recorded:
        if role.startswith("old_"):
            out[role] = over_tokens(_reader(program, role.removeprefix("old_")))
        elif role == "old" and (options.recompute or options.engine is not None):
            out[role] = over_tokens(_reader(program, program.trained))
        else:
            out[role] = rolled.logps
    return dataclasses.replace(rolled, recorded=out)


@functools.lru_cache(maxsize=16)
def _reader(program, role):
    """Compiled: what a role says of every token, values where they are foreseen."""

    def read(params, batch):
        found = run_role(program, role, params, batch)
        if program.algorithm.roles[role] == "logps":
            return found.logps
        return policy.before(found.scores, batch)

    return jax.jit(read)
