"""From a recipe to everything a loop needs: model, encoded data, placed parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from alanything_jax import hub
from alanything_jax.algorithms.base import TEACHER, scores_trained
from alanything_jax.data import fetch, packing, pipeline, soft, streaming
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.groups import check_paths, load_groups
from alanything_jax.experiment import Experiment
from alanything_jax.hub.load import Place
from alanything_jax.hub.source import ModelSource, describe, load_model
from alanything_jax.models import params as trees
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.lora import lora_specs
from alanything_jax.sharding import distributed, pjit, rules
from alanything_jax.sharding import mesh as meshes
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import reference
from alanything_jax.training.step import Compute, Flat, Program, check_block, run_role

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `train` and `evaluate` start from.

    Attributes:
      trainable, frozen: flat dicts `{role/path: array}` on the mesh.
      shardings: of both.
      rates: learning-rate multipliers of the trainable arrays.
      layout: of every microbatch.
      train, heldout: sources of steps; None without held-out groups, or where rollouts
        are learnt from.
    """

    program: Program
    bundle: hub.Bundle
    mesh: jax.sharding.Mesh
    rules: rules.Rules
    trainable: Flat
    frozen: Flat
    shardings: dict[str, Any]
    rates: dict[str, np.ndarray]
    layout: packing.Layout
    train: pipeline.StepSource | streaming.StreamSource | None
    heldout: pipeline.StepSource | None


def prepare(
    experiment: Experiment,
    quarantine: Path,
    say: Say = print,
    kept: Path | None = None,
) -> Prepared:
    """Load, encode, split, place; compute or read the reference's log-probs.

    `kept`: the folder that holds these; None = the cache of this machine.
    """
    kept = kept or fetch.cache_dir() / "reference"
    algorithm = experiment.algorithm
    mesh, table, bundle = load(experiment, say)
    data, wide = experiment.data, algorithm.min_responses
    listed = quarantine if distributed.is_primary() else None
    needs = (bundle.tokenizer, bundle.coder, wide)
    train, heldout = load_groups(data, needs[0], wide, listed, say, bundle.coder)
    check_same([*train, *heldout])
    per_step = experiment.train.groups_per_step
    known, compute, config = [*train, *heldout], experiment.compute, bundle.model.config
    if data.stream:
        media = streaming.media_plans(config.encoders, compute.media_patches)
        wide = data.stream_responses or wide
    else:
        media, wide = media_plans(known, compute, config), 0
    program = program_of(experiment, config)
    trainable, frozen, rates, shardings = partition(
        experiment, program, bundle, mesh, table
    )
    layout = packing.Layout(
        rows=meshes.rows(mesh, table, compute.rows_per_microbatch),
        row_tokens=compute.row_tokens,
        groups=per_step,
        responses=max([wide, *(len(group.branches) for group in known)]),
        numbers=tuple(algorithm.numbers),
        media=media,
    )
    numbers = [None, None]
    if program.frozen_roles and experiment.reference == "cached":
        host = _prefixed(program.trained, trees.flatten(bundle.params))
        params = (reference.fingerprint(host), frozen | trainable)
        with jax.set_mesh(mesh):
            numbers = _reference_logps(
                program, params, (train, heldout), layout, mesh, table, kept, say
            )
    own = own_rows(mesh, table, layout)
    how = (layout, per_step, experiment.seed, algorithm.couples)

    def source(groups, numbers, shuffle):
        order = (shuffle, own, data.weights, data.workers)
        return pipeline.StepSource(groups, *how, numbers, *order)

    feed = (
        streaming.StreamSource(data, needs, listed, *how, own, say)
        if data.stream
        else source(train, numbers[0], True)
    )
    # The weights are the loop's now, which gives them away step by step.
    bundle = dataclasses.replace(bundle, params={})
    return Prepared(
        program,
        bundle,
        mesh,
        table,
        trainable,
        frozen,
        shardings,
        rates,
        layout,
        feed,
        source(heldout, numbers[1], False) if heldout else None,
    )


def check_same(groups: Sequence[EncodedGroup]) -> None:
    """Raise ValueError where hosts, each of which reads the data, read other data."""
    if distributed.several():
        distributed.agree(
            "the data",
            [len(groups), reference.cache_key("", groups, "")],
            "each host reads them by itself. Give all the same files, and the same "
            "versions of transformers and tokenizers.",
        )


def own_rows(
    mesh: jax.sharding.Mesh, table: rules.Rules, layout: packing.Layout
) -> np.ndarray | None:
    """Which rows of a microbatch this process fills; None where it is alone: all."""
    if not distributed.several():
        return None
    return pjit.own_rows(mesh, table, layout.rows)


def load(
    experiment: Experiment, say: Say
) -> tuple[jax.sharding.Mesh, rules.Rules, hub.Bundle]:
    """The mesh, its rules, and the model, laid on it where it is read from a directory.

    Raises:
      ValueError: of several processes, some would have no device of the mesh.
      FileNotFoundError: no data where the recipe says; a model may take long to fetch.
    """
    check_paths(experiment.data)
    if experiment.rollout and experiment.rollout.ptx:
        check_paths(experiment.rollout.ptx)
    mesh = meshes.make(experiment.compute.mesh)
    if distributed.several() and mesh.size < jax.device_count():
        raise ValueError(
            f"compute.mesh {experiment.compute.mesh} takes {mesh.size} of the "
            f"{jax.device_count()} devices of {jax.process_count()} processes, which must "
            "all take part: give it all of them, such as --compute.mesh fsdp=-1 and "
            "--compute.rows-per-microbatch 0."
        )
    table = meshes.check(mesh, experiment.compute.rules)
    check_block(experiment.compute, mesh)
    bundle = load_model(
        experiment.model,
        scores_trained(experiment.algorithm),
        experiment.seed,
        place_read(experiment.model, mesh, table),
    )
    say(
        f"model {experiment.model.path}: {trees.count(bundle.params) / 1e6:.1f}M parameters"
    )
    return mesh, table, bundle


def media_plans(
    groups: Sequence[EncodedGroup], compute: Compute, config: DecoderConfig
) -> tuple[soft.MediaPlan, ...]:
    """What a row has of each encoder's patches: of those encoders that the data need.

    As many as the neediest group, or a quarter more than a row of average groups.
    """
    tokens = sum(packing.group_length(group) for group in groups)
    out = []
    for encoder, sizes in packing.media_needs(groups, config.encoders):
        usual = 1.25 * compute.row_tokens * sum(sizes) / tokens
        budget = compute.media_patches or max(*sizes, int(usual))
        out.append(soft.plan_of(encoder, budget))
    return tuple(out)


def program_of(experiment: Experiment, config: DecoderConfig) -> Program:
    """What is static in the compiled parts of a recipe."""
    return Program(
        experiment.algorithm,
        config,
        experiment.compute,
        experiment.model.compute_dtype,
        experiment.adapter,
        experiment.reference,
        experiment.rollout.sampling.temperature if experiment.rollout else 1.0,
        describe(experiment.teacher).config if experiment.teacher else None,
    )


def partition(experiment, program, bundle, mesh, table):
    """Split parameters by what trains; place each on the mesh.

    Returns:
      trainable, frozen, learning-rate multipliers, shardings: flat dicts by role/path.
    """
    scoring = scores_trained(program.algorithm)
    specs = bundle.model.specs(scoring)
    role = program.trained
    values = _prefixed(role, trees.flatten(bundle.params))
    axes = _prefixed(role, trees.flatten(specs))
    if TEACHER in program.frozen_roles:
        place = place_read(experiment.teacher, mesh, table)
        own, declared = _teacher(experiment, bundle, place)
        values, axes = values | own, axes | declared
    elif program.reference == "live" and program.frozen_roles:
        other = program.frozen_roles[0]
        values |= _prefixed(other, trees.flatten(bundle.params))
        axes |= _prefixed(other, trees.flatten(specs))
    if experiment.adapter is not None:
        adapter = lora_specs(specs, experiment.adapter)
        key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
        values |= _prefixed("lora", trees.flatten(trees.init(adapter, key)))
        axes |= _prefixed("lora", trees.flatten(adapter))
    owner = role if experiment.adapter is None else "lora"
    candidates = [path for path in values if path.startswith(f"{owner}/")]
    if experiment.adapter is not None and scoring:
        candidates.append(f"{role}/heads/score/kernel")
    for number, other in enumerate(program.algorithm.trains[1:]):
        own, declared = _value_model(experiment, bundle, other, number)
        values, axes, candidates = values | own, axes | declared, [*candidates, *own]
    plain = {path: path.split("/", 1)[1] for path in candidates}
    rates = optimizers.multipliers(
        experiment.optimizer, {plain[p]: values[p].shape for p in candidates}
    )
    rates = {path: rates[plain[path]] for path in candidates}
    place = _place(mesh, table)
    shardings = {path: place(spec) for path, spec in axes.items()}
    live = {path for path in candidates if np.any(rates[path] != 0)}
    placed = {}
    shared = program.reference == "live" and program.teacher is None
    for path in list(values):
        value = values.pop(path)
        # What trains is donated step by step: a live reference needs its own.
        value = jnp.array(value) if shared and path in live else value
        placed[path] = pjit.place(value, shardings[path])
    trainable = {path: placed.pop(path) for path in sorted(live)}
    return trainable, placed, {path: rates[path] for path in trainable}, shardings


def _teacher(experiment, bundle, place):
    """Values and declarations of the teacher, which may be of any size.

    Raises ValueError: it reads other tokens or media than the policy.
    """
    source, ours = experiment.teacher, bundle.model.config
    # A random one is another than the policy.
    found = load_model(source, False, experiment.seed + 1, place)
    theirs, tokenizers = found.model.config, (bundle.tokenizer, found.tokenizer)
    if theirs.vocab_size < ours.vocab_size or theirs.grammar != ours.grammar:
        wrong = f"{theirs.vocab_size} ids where the policy has {ours.vocab_size}"
    elif None not in tokenizers and len(set(map(_words, tokenizers))) > 1:
        wrong = "another tokenizer"
    elif ours.encoders and _media(theirs) != _media(ours):
        wrong = "other encoders of media"
    else:
        return (
            _prefixed(TEACHER, trees.flatten(found.params)),
            _prefixed(TEACHER, trees.flatten(found.model.specs(False))),
        )
    raise ValueError(
        f"teacher {source.path} has {wrong}: it reads the policy's rows as they are, so "
        f"give a model of the tokenizer and media of {experiment.model.path}."
    )


def _words(tokenizer):
    return tuple(sorted(tokenizer.get_vocab().items()))


def _media(config):
    return [soft.plan_of(encoder, 0) for encoder in config.encoders]


def _value_model(experiment, bundle, role, number):
    """Values and declarations of another trained role, which has a scalar head.

    With an adapter it is the policy's trunk with an adapter of its own.
    """
    specs = bundle.model.specs(True)
    # Its head, and adapter, differ from other roles' of this seed.
    seed = experiment.seed + 1000 * (number + 1)
    if experiment.adapter is None:
        source = experiment.value or experiment.model
        found = load_model(source, True, seed)
        if found.model != bundle.model:
            raise ValueError(
                f"value {source.path} is not of the policy's family and shape: the value "
                "model shares its rows. Give a reward model trained from the same base."
            )
        return (
            _prefixed(role, trees.flatten(found.params)),
            _prefixed(role, trees.flatten(specs)),
        )
    head = {"heads": {"score": specs["heads"]["score"]}}
    parts = {role: head, f"{role}_lora": lora_specs(specs, experiment.adapter)}
    values, axes = {}, {}
    for name, declared in parts.items():
        made = trees.init(declared, jax.random.fold_in(jax.random.key(seed), 1))
        values |= _prefixed(name, trees.flatten(made))
        axes |= _prefixed(name, trees.flatten(declared))
    return values, axes


def place_read(source: ModelSource, mesh: Mesh, table: rules.Rules) -> Place | None:
    """Where parameters go while they are read; None of one: it stays on the host.

    A vocabulary that is to grow does so there, and `partition` then places it.
    """
    if mesh.size == 1:
        return None
    place, grows = _place(mesh, table), bool(source.codecs or source.vision)
    return lambda spec: None if grows and "vocab" in spec.axes else place(spec)


def _place(mesh, table):
    """Where a declared parameter goes."""
    return lambda spec: rules.named(mesh, spec.shape, spec.axes, table)


def _prefixed(role, flat):
    return {f"{role}/{path}": value for path, value in flat.items()}


def _reference_logps(program, params, splits, layout, mesh, table, kept, say):
    """Per split `{role_logps: per group and branch}`, read from the cache or computed."""
    weights, params = params
    base = {p: v for p, v in params.items() if not p.startswith("lora/")}
    role = program.frozen_roles[0]
    kind = f"{program.compute_dtype} {program.config.grammar or ''}".strip()
    forward = jax.jit(functools.partial(run_role, program, role))
    plain = dataclasses.replace(layout, numbers=())

    def logps(batch):
        placed = pjit.place_batch(batch, mesh, table, whole=True)
        return pjit.fetch(forward(base, placed).logps)

    out = []
    for groups in splits:
        key = reference.cache_key(weights, groups, kind)
        path = kept / f"{key[:32]}.npz"

        def make(groups=groups, path=path):
            say(f"reference log-probs of {len(groups)} groups, once, into {path}")
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            off = not distributed.is_primary()
            with Progress("reference", *columns, disable=off) as bar:
                task = bar.add_task("reference", total=len(groups))
                return reference.compute(
                    logps, groups, plain, lambda done: bar.update(task, completed=done)
                )

        out.append(
            {f"{role}_logps": reference.shared(path, key, groups, make)}
            if groups
            else None
        )
    return out
