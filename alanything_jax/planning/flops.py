"""Floating-point operations: what a program does, and what its model asks for."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alanything_jax.algorithms.base import TEACHER
from alanything_jax.models import attention, quant
from alanything_jax.models.config import DecoderConfig

# Products of a query block with a key block, by the name of the kernel.
KERNEL_DOTS = {
    "group_attention_dkv": 4,
    "group_attention_dq": 3,
    "group_attention": 2,
}


def of_program(jaxpr: Any, unknown: float = 1) -> float:
    """FLOPs of the products in a traced program, every loop multiplied out.

    Kernels are not in it. Of a conditional the dearer branch counts. Inside `shard_map`
    shapes are one device's, so they count for each of its axes' devices.

    `unknown`: how often a loop runs whose bound is known when it runs.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name in _PRODUCTS:
            shapes = [v.aval.shape for v in (*eqn.invars[:2], *eqn.outvars)]
            total += 2.0 * _PRODUCTS[name](params, *shapes)
        elif name == "cond":
            total += max(of_program(b.jaxpr, unknown) for b in params["branches"])
        elif name != "pallas_call":
            times = params.get("length", 1) if name == "scan" else 1
            times = unknown if name == "while" else times
            if name == "shard_map":
                # Versions of JAX name it differently.
                axes = params.get("newly_manual_axes") or params["manual_axes"]
                times = math.prod(params["mesh"].shape[axis] for axis in axes)
            for inner in jax.core.jaxprs_in_params(params):
                total += times * of_program(inner, unknown)
    return total


def _dot(params, left, right, out):
    (over, _), _ = params["dimension_numbers"]
    return math.prod(out) * math.prod(left[d] for d in over)


def _ragged_dot(params, left, right, out):
    """Rows go to one group each: to all groups together as many as there are."""
    numbers = params["ragged_dot_dimension_numbers"]
    (over, _), _ = numbers.dot_dimension_numbers
    inner = math.prod(left[d] for d in over)
    # Where the ragged dim is summed over, each group has a result of its own.
    summed = numbers.lhs_ragged_dimensions[0] in over
    return math.prod(out) * inner / (out[0] if summed else 1)


def _convolution(params, left, right, out):
    return (
        math.prod(out)
        * math.prod(right)
        / right[params["dimension_numbers"].rhs_spec[0]]
    )


_PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}


def example_row(length: int, responses: int) -> attention.Rows:
    """The row that a plan assumes: a prompt of half of it, responses of equal share."""
    prompt = length // 2
    share = (length - prompt) // responses
    branch = np.zeros(length, np.int32)
    index = np.arange(length, dtype=np.int32)
    for number in range(responses):
        start = prompt + number * share
        end = length if number == responses - 1 else start + share
        branch[start:end] = number + 1
        index[start:end] = prompt + np.arange(end - start)
    one = np.ones(length, np.int32)
    return attention.Rows(*(x[None] for x in (one, branch, index, 0 * one)))


@functools.cache
def visible_share(length: int, responses: int, block: int) -> tuple[int, int]:
    """Of the example row: pairs that see each other, and pairs in visited blocks."""
    row, blocks = example_row(length, responses), -(-length // block)
    pairs = used = 0
    # A block of queries at a time: long rows have more pairs than a host has memory for.
    for start in range(0, length, block):
        some = jax.tree.map(lambda x, at=start: x[:, at : at + block], row)
        mask = np.asarray(attention.visible(some, row))[0]
        padded = np.pad(mask, ((0, 0), (0, blocks * block - length)))
        pairs += int(mask.sum())
        used += int(padded.reshape(len(mask), blocks, block).any((0, 2)).sum())
    return pairs, used * block * block


def mean_visited(length: int, responses: int, block: int) -> float:
    """Of the example row: blocks of keys that a block of queries visits."""
    _, pairs = visible_share(length, responses, block)
    return pairs / block**2 / -(-length // block)


def active(cfg: DecoderConfig, sizes: Mapping[str, int]) -> int:
    """Parameters that a token of the decoder passes through.

    Args:
      sizes: path -> number of values, of all parameters.
    """
    share = cfg.moe.active / cfg.moe.experts if cfg.moe else 1.0
    return sum(
        round(size * share)
        if cfg.moe and path.startswith("layers/mlp/") and "router" not in path
        else size
        for path, size in sizes.items()
        if not path.startswith("encoders/")
    )


def of_encoder(sizes: Mapping[str, int], name: str, patches: int, rate: float) -> float:
    """What an encoder asks for of so many patches, its attention not counted."""
    own = sum(n for p, n in sizes.items() if p.startswith(f"encoders/{name}/"))
    return rate * patches * own


def of_model(
    cfg: DecoderConfig,
    params: int,
    tokens: int,
    pairs: int,
    rate: float,
    of_scores: float | None = None,
) -> float:
    """What a step asks for: `rate` (6 to train, 2 to read) a parameter and token.

    Args:
      params: number of parameters. tokens, pairs: of all rows.
      of_scores: the rate of attention, if another: it has no weights that are frozen.
    """
    scores = 2 * cfg.num_layers * cfg.num_heads * cfg.head_width * pairs
    return rate * params * tokens + (rate if of_scores is None else of_scores) * scores


def of_step(parts: Any, tokens: int) -> tuple[float, float, float]:
    """Of a step over all chips: as traced (with the kernels), the model's, and what of
    these is an input embedding's, which is looked up and not multiplied.

    Args:
      parts: `planning.abstract.Abstract`. tokens: of all rows of the step.
    """
    program, arguments = parts.program, parts.accumulate[1]
    cfg, batch, trained = program.config, arguments[2], program.algorithm.trains
    teacher, compute = program.teacher, program.compute
    rows, length = batch.tokens.shape
    pairs, visited = visible_share(length, batch.table.shape[1], compute.block)
    traced = 0.0
    unknown = mean_visited(length, batch.table.shape[1], compute.block)
    for function, given in filter(None, (parts.accumulate, parts.frozen)):
        with jax.set_mesh(parts.mesh):
            traced += of_program(function.trace(*given).jaxpr.jaxpr, unknown)
    if compute.attention == "flash":
        once = KERNEL_DOTS["group_attention"]
        each = sum(KERNEL_DOTS.values()) + once * (compute.remat == "full")
        traced += len(trained) * each * kernel_dot(cfg, visited * rows) * cfg.num_layers
        other = teacher or cfg
        read = once * kernel_dot(other, visited * rows) * other.num_layers
        traced += len(program.read_roles) * read
    sizes = quant.sizes(arguments[0] | arguments[1])
    own = _of_role(sizes, program.trained)
    # Of every role that trains: value models are of the policy's size.
    reads = len(program.read_roles) - (teacher is not None)
    rate = (6 if program.lora is None else 4) * len(trained) + 2 * reads
    seen, every = pairs * rows * parts.microbatches, parts.microbatches
    scores = 6 * len(trained) + 2 * reads
    model = of_model(cfg, active(cfg, own), tokens, seen, rate, scores)
    if program.lora is not None:
        model += 6 * tokens * sum(n for p, n in sizes.items() if "lora/" in p)
    table = 0 if cfg.tied else own.get("embed/text/table", 0)
    # An encoder that does not train is only read.
    trains = {path.split("/")[2] for path in arguments[0] if "/encoders/" in path}
    patches = {name: math.prod(m["segment"].shape) for name, m in batch.media.items()}
    for name, count in patches.items():
        wanted = rate if name in trains else 2
        model += every * of_encoder(own, name, count, wanted)
    if teacher is not None:
        theirs = _of_role(sizes, TEACHER)
        model += of_model(teacher, active(teacher, theirs), tokens, seen, 2)
        for name, count in patches.items():
            model += every * of_encoder(theirs, name, count, 2)
    return every * traced, model, rate * table * tokens


def kernel_dot(cfg: DecoderConfig, pairs: int) -> float:
    """FLOPs of one product of all heads' queries with keys, in one layer."""
    return 2.0 * pairs * cfg.num_heads * cfg.head_width


def _of_role(sizes, role):
    """What is a role's own, by path within it."""
    start = f"{role}/"
    return {p.removeprefix(start): n for p, n in sizes.items() if p.startswith(start)}
