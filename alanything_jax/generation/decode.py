"""Continue prompts with a KV cache: rows that are over make room for prompts that wait.

prompts -> prefill -> ready -> slots, CHUNK tokens at a time -> completions

Every shape is one of a few: prompts are padded to a power of two, read in batches of a
power of two, and the cache grows and shrinks along `room`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alanything_jax.data import packing
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.soft import Placement, plan_of
from alanything_jax.generation import rows as device
from alanything_jax.generation.rows import CHUNK
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models.config import DecoderConfig
from alanything_jax.sharding.pjit import fetch


@dataclasses.dataclass(frozen=True)
class Completion:
    """One generated continuation.

    Attributes:
      tokens: [n] int32, its end-of-text token included if it came.
      logps: [n] float32, as `sampler.sample` defines them.
      finished: False where `max_new_tokens` cut it off.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finished: bool


def bucket(size: int, smallest: int = 32) -> int:
    """The next power of two: few shapes, so few compilations."""
    return max(smallest, 1 << (size - 1).bit_length())


def room(size: int) -> int:
    """Slots of a cache for `size` tokens: 32, 48, 64, 96, 128, 192, ..."""
    power = bucket(size)
    return max(32, power * 3 // 4) if size <= power * 3 // 4 else power


def generate_tokens(
    params: Any,
    cfg: DecoderConfig,
    prompts: Sequence[np.ndarray],
    *,
    soft: Sequence[Placement | None] = (),
    samples: int = 1,
    slots: int | None = None,
    max_new_tokens: int | Sequence[int] = 256,
    sampling: Sampling = Sampling(),
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    lora: Any = None,
    lora_scale: float = 1.0,
    on_tokens: Callable[[np.ndarray], None] | None = None,
    on_done: Callable[[int, Completion], None] | None = None,
    stop: Callable[[int, np.ndarray], int | None] | None = None,
) -> list[Completion]:
    """Continue every prompt (1-D int arrays, at least one token each).

    Row n, sample n % samples of prompt n // samples, draws token t with (seed, n, t)
    alone: neither its slot nor its neighbours matter.

    Args:
      params: as they are, on one device or laid over a mesh.
      soft: each prompt's media for encoders. A prompt that ends with the opener of a
        block is continued by its codes.
      samples: continuations of each prompt, which is read once for all of them.
      slots: rows decoded at a time; None = all. Others wait, the longest budgets first,
        and take the places of rows that are over.
      max_new_tokens: of all, or one for each prompt.
      on_tokens: gets the first row's new tokens as they come.
      on_done: gets a row's number and completion as soon as it is over.
      stop: of a row's number and tokens so far, how many to keep if it is over; else None.

    Returns:
      prompts' first samples, ... in the order of the prompts, samples together.

    Raises ValueError: an empty prompt, or one that leaves no room in `max_positions`.
    """
    budgets = np.broadcast_to(np.asarray(max_new_tokens, int), len(prompts))
    _check(cfg, prompts, budgets, samples, slots)
    reader = _Reader(
        params, cfg, prompts, soft, samples, budgets, sampling, lora, lora_scale
    )
    if device.unstacks():
        params, lora = device.unstacked(params, cfg, lora)
    total = len(prompts) * samples
    places: list[_Row | None] = [None] * min(slots or total, total)
    out: list[Any] = [None] * total
    state, eos = None, list(eos_ids)
    while True:
        state = _seat(state, places, reader.take(places.count(None)), seed)
        if not any(places):
            return out
        if not reader.left and device.unstacks():
            places, state = _close_ranks(places, state)
        *made, state = device.decode(params, cfg, state, sampling, lora, lora_scale)
        tokens, logps = map(fetch, made)
        hits = np.isin(tokens, eos)
        ends = np.where(hits.any(axis=0), hits.argmax(axis=0), CHUNK).tolist()
        for place, row in enumerate(places):
            if row is None:
                continue
            before = row.size
            done = row.grow(tokens[:, place], logps[:, place], ends[place], stop)
            if on_tokens and row.number == 0:
                on_tokens(row.tokens[before : row.size])
            if done:
                places[place], out[row.number] = None, done
                if on_done:
                    on_done(row.number, done)


def _check(cfg, prompts, budgets, samples, slots):
    sizes = np.array([len(prompt) for prompt in prompts])
    if min(sizes) == 0:
        raise ValueError("a prompt has no token: give it some text.")
    if samples < 1 or (slots is not None and slots < 1) or min(budgets) < 1:
        raise ValueError(
            f"samples={samples}, slots={slots} and max_new_tokens={min(budgets)} must "
            "be at least 1."
        )
    worst = int(np.argmax(sizes + budgets))
    if sizes[worst] + budgets[worst] > cfg.max_positions:
        raise ValueError(
            f"a prompt of {sizes[worst]} tokens and {budgets[worst]} new ones exceed the "
            f"model's {cfg.max_positions} positions: shorten one of them."
        )


class _Row:
    """A row that is being decoded."""

    def __init__(self, number: int, prompt: int, budget: int):
        self.number, self.prompt, self.size = number, prompt, 0
        self.tokens = np.zeros(budget, np.int32)
        self.logps = np.zeros(budget, np.float32)

    def grow(self, tokens, logps, end, stop) -> Completion | None:
        """Take a chunk, in which end of text is at `end`; a completion if it is over."""
        new = min(end + 1, CHUNK, len(self.tokens) - self.size)
        finished = new == end + 1
        here = slice(self.size, self.size + new)
        self.tokens[here], self.logps[here] = tokens[:new], logps[:new]
        self.size += new
        kept = stop(self.number, self.tokens[: self.size]) if stop else None
        if kept is not None:
            self.size, finished = kept, True
        if not finished and self.size < len(self.tokens):
            return None
        return Completion(
            self.tokens[: self.size], self.logps[: self.size], bool(finished)
        )


class _Reader:
    """Prompts that wait, and those that are read and wait for a place."""

    def __init__(
        self, params, cfg, prompts, soft, samples, budgets, sampling, lora, lora_scale
    ):
        self.prompts, self.soft, self.samples = prompts, soft, samples
        self.budgets, self.cfg = budgets, cfg
        # The longest first: at the end few places are empty, and rows that are decoded
        # together are alike in length.
        order = np.argsort(-budgets, kind="stable").tolist()
        self.waiting = collections.deque(order)
        self.ready = collections.deque()
        # At least so many prompts are read at a time, a quarter of the first ones: one
        # alone takes twice the time that it takes among eight. 0 = none is read yet.
        self.ahead = 0
        self.rest = params, sampling, lora, lora_scale

    @property
    def left(self) -> bool:
        """Whether any row still waits for a place."""
        return bool(self.waiting or self.ready)

    def take(self, count: int) -> list[tuple[_Row, device.Rows, int]]:
        """Up to `count` rows; of each, the prefilled rows where it is, and its place."""
        while self.waiting and len(self.ready) < count:
            some = max(-(-(count - len(self.ready)) // self.samples), self.ahead)
            some = min(some, len(self.waiting))
            if self.ahead:
                some = 1 << (some.bit_length() - 1)  # few shapes, and no padding
            self.ahead = self.ahead or -(-some // 4)
            self._read([self.waiting.popleft() for _ in range(some)])
        return [self.ready.popleft() for _ in range(min(count, len(self.ready)))]

    def _read(self, numbers):
        params, sampling, lora, lora_scale = self.rest
        some = [self.prompts[n] for n in numbers]
        lengths = np.array([len(prompt) for prompt in some], np.int32)
        tokens = np.zeros((len(some), bucket(int(max(lengths)))), np.int32)
        for row, prompt in zip(tokens, some, strict=True):
            row[: len(prompt)] = prompt
        soft = [self.soft[n] for n in numbers] if self.soft else []
        media = _with_media(self.cfg, some, soft, tokens.shape[1])
        read = device.prefill(
            params, self.cfg, tokens, lengths, media, sampling, lora, lora_scale
        )
        for place, (n, size) in enumerate(zip(numbers, lengths, strict=True)):
            for sample in range(self.samples):
                row = _Row(n * self.samples + sample, int(size), int(self.budgets[n]))
                self.ready.append((row, read, place))


def _seat(state, places, new, seed):
    """Put new rows into empty places, and give all rows room for a chunk."""
    free = [place for place, row in enumerate(places) if row is None]
    seats = list(zip(free, new, strict=False))
    for place, (row, _, _) in seats:
        places[place] = row
    needed = [row.prompt + row.size + CHUNK for row in places if row]
    needed += [read.cache.k.shape[-1] for _, read, _ in new]
    if not needed:
        return state
    size = room(max(needed))
    if state is None:
        state = device.empty(new[0][1], len(places), size, device.unstacks())
    elif state.room != size:
        state = device.resize(state, size)
    for read in {id(read): read for _, read, _ in new}.values():
        some = [(at, n, row.number) for at, (row, r, n) in seats if r is read]
        # Few shapes: what is past the end is dropped.
        some += [(len(places), 0, 0)] * (bucket(len(some), 1) - len(some))
        columns = np.array(some, np.int32).T
        state = device.fill(state, read, *columns, seed)
    return state


def _close_ranks(places, state):
    """Without empty places, where three in four are: on a CPU each costs its share."""
    live = [place for place, row in enumerate(places) if row is not None]
    size = len(places) // 4
    if size < 4 or len(live) > size:
        return places, state
    at = live + [live[0]] * (size - len(live))
    kept = [places[place] for place in live] + [None] * (size - len(live))
    return kept, device.pick(state, np.array(at, np.int32))


def _with_media(cfg, prompts, soft, width):
    """The prompts as a batch, one a row; None where no prompt has media."""
    if not any(soft):
        return None
    groups = [
        EncodedGroup(str(n), tokens, (), prompt_soft=placement)
        for n, (tokens, placement) in enumerate(zip(prompts, soft, strict=True))
    ]
    media = [
        # Few budgets, so few compilations.
        plan_of(encoder, bucket(-(-max(sizes) // encoder.align), 1) * encoder.align)
        for encoder, sizes in packing.media_needs(groups, cfg.encoders)
    ]
    return packing.one_a_row(groups, len(groups), width, media)
