"""Reference log-probs, computed once and kept beside the data.

A cache file is named after a hash of everything its numbers depend on: the weights, the
token ids as encoded (so the template, tokenizer and truncation too) and the compute
dtype. A file that holds another key than its name is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from alanything_jax.data import packing
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.schema import Batch
from alanything_jax.sharding import distributed

# Per group, per branch, an array as long as the branch.
TokenNumbers = list[list[np.ndarray]]


def fingerprint(params: Mapping[str, jax.Array]) -> str:
    """sha256 over names, shapes, dtypes and digests of a flat dict of arrays.

    The digests are made where the arrays lie, and are the same however they are sharded.
    """
    digest = hashlib.sha256()
    for path in sorted(params):
        value = params[path]
        digest.update(f"{path} {value.shape} {value.dtype} {_digest(value)}".encode())
    return digest.hexdigest()


@jax.jit
def _mixed(value):
    """Two uint32 sums of every element's bits, each mixed with its place."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[value.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(value, kind).astype(jnp.uint32)
    place = jnp.uint32(0)
    for dim, size in enumerate(value.shape):
        own = jax.lax.broadcasted_iota(jnp.uint32, value.shape, dim)
        place = place * jnp.uint32(size) + own
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
    return jnp.sum(mixed), jnp.sum(mixed * (2 * place + 1))


def _digest(value):
    return [int(part) for part in jax.device_get(_mixed(value))]


def cache_key(weights: str, groups: Sequence[EncodedGroup], compute_dtype: str) -> str:
    """The hash that names a cache file."""
    digest = hashlib.sha256(f"{weights} {compute_dtype}".encode())
    for group in groups:
        for tokens in (group.prompt, *(branch.tokens for branch in group.branches)):
            digest.update(len(tokens).to_bytes(4, "little"))
            digest.update(np.ascontiguousarray(tokens, np.int32).data)
        for branch in group.branches:
            digest.update(np.ascontiguousarray(branch.scored, np.uint8).data)
        for view in (group.prompt_soft, *(branch.soft for branch in group.branches)):
            for medium in view.media if view is not None else ():
                digest.update(medium.digest)
    return digest.hexdigest()


def compute(
    forward: Callable[[Batch], jax.Array],
    groups: Sequence[EncodedGroup],
    layout: packing.Layout,
    report: Callable[[int], None] = lambda done: None,
) -> TokenNumbers:
    """Run `forward(batch) -> [B, T]` over all groups, a layout's worth at a time."""
    out: TokenNumbers = [[np.zeros(0)] * len(group.branches) for group in groups]
    for first in range(0, len(groups), layout.groups):
        some = groups[first : first + layout.groups]
        for rows in packing.plan(some, layout, couples=False):
            values = np.asarray(forward(packing.lay_out(some, rows, layout)))
            for (g, b), array in packing.take(some, rows, values).items():
                out[first + g][b] = array.astype(np.float32)
        report(first + len(some))
    return out


def cached(
    path: Path,
    key: str,
    groups: Sequence[EncodedGroup],
    make: Callable[[], TokenNumbers],
) -> TokenNumbers:
    """Read the cache file at `path`, or make it.

    Raises ValueError: the file was made from other weights, tokens or dtype.
    """
    sizes = [[len(branch.tokens) for branch in group.branches] for group in groups]
    cuts = np.cumsum([size for row in sizes for size in row])
    if not path.exists():
        values = make()
        flat = np.concatenate([array for row in values for array in row])
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp.npz")
        np.savez(aside, key=np.array(key), logps=flat)
        os.replace(aside, path)
    with np.load(path, allow_pickle=False) as file:
        stored, flat = str(file["key"]), file["logps"]
    if stored != key or len(flat) != cuts[-1]:
        raise ValueError(
            f"stale reference log-probs: {path} was made from other weights, token ids or "
            f"dtype (it holds key {stored[:12]}, this run needs {key[:12]}). Delete it and "
            "run again."
        )
    pieces = iter(np.split(flat, cuts[:-1]))
    return [[next(pieces) for _ in row] for row in sizes]


def shared(
    path: Path,
    key: str,
    groups: Sequence[EncodedGroup],
    make: Callable[[], TokenNumbers],
) -> TokenNumbers:
    """`cached`; of several processes, only process 0 has the file."""
    if not distributed.several():
        return cached(path, key, groups, make)
    primary = distributed.is_primary()
    found = distributed.gather(primary and path.exists())[0]
    values = None if found else make()
    if primary:
        values = cached(path, key, groups, lambda: values)
    if not found:
        return values
    sizes = [len(branch.tokens) for group in groups for branch in group.branches]
    flat = np.zeros(sum(sizes), np.float32)
    if primary:
        flat = np.concatenate([array for row in values for array in row])
    flat = multihost_utils.broadcast_one_to_all(flat)
    pieces = iter(np.split(flat, np.cumsum(sizes)[:-1]))
    return [[next(pieces) for _ in group.branches] for group in groups]
