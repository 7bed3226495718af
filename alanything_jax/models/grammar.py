"""Which tokens may stand where, when media are blocks of codes in a text vocabulary.

    a picture of  <|image|> c c c c ... c  and then text again
    `----text---------'     `-- codes -'   `-- text --

An opened block gets exactly its codes: a fixed number, or whole frames and then a stop
code. Ids that every block of a kind has beside its codes (rows' ends, a closing token) are
forced. Sampler and trainer take log-probs over the tokens that are allowed at a position;
a token that had no alternative is forced, and unscored.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["image", "audio", "video"]


@dataclasses.dataclass(frozen=True)
class Block:
    """How the media of one kind lie in vocabulary and sequence.

    Attributes:
      open_id: the text token that opens a block.
      start, size: ids of the codes are start .. start + size - 1; start + size is the
        stop code, where there is one.
      length: codes of a block; the most of them, with a stop code.
      stop: a block may end early, by its stop code.
      frame: codes of a frame; a block holds whole frames, and at least one.
      before, after: ids that stand before all codes and behind them.
      row, row_end: `row_end` stands behind each `row` codes; row = 0: nowhere.
    """

    kind: Kind
    open_id: int
    start: int
    size: int
    length: int
    stop: bool = False
    frame: int = 1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    row: int = 0
    row_end: int = 0

    def __post_init__(self):
        if self.length % self.frame or self.length < 1:
            raise ValueError(
                f"a block of {self.length} codes is no whole number of frames of "
                f"{self.frame}: give a multiple."
            )
        if self.stop and (self.before or self.after or self.row):
            raise ValueError("a block with a stop code has no other ids but its codes.")
        if self.row and self.length % self.row:
            raise ValueError(
                f"a block of {self.length} codes is no whole number of rows of "
                f"{self.row}: give a multiple."
            )

    @property
    def ids(self) -> int:
        """Ids it takes of the vocabulary, its stop code included."""
        return self.size + self.stop

    @property
    def template(self) -> np.ndarray:
        """What follows the opener, int32: forced ids, and -1 where a code stands."""
        codes = np.full(self.length, -1, np.int32)
        if self.row:
            rows = codes.reshape(-1, self.row)
            codes = np.pad(rows, ((0, 0), (0, 1)), constant_values=self.row_end).ravel()
        return np.concatenate([self.before, codes, self.after]).astype(np.int32)

    @property
    def total(self) -> int:
        """Tokens behind the opener; the most of them, with a stop code."""
        return len(self.template) + self.stop

    def fits(self, tokens: np.ndarray) -> int:
        """How many tokens in a row fit behind the opener; a stop code is not counted."""
        plan = self.template[: len(tokens)]
        tokens = tokens[: len(plan)]
        codes = (tokens >= self.start) & (tokens < self.start + self.size)
        good = np.where(plan < 0, codes, tokens == plan)
        return len(good) if good.all() else int(np.argmin(good))


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Text with blocks in it.

    Codes lie behind the text's ids or, of one block, among them. Streams number what a
    position allows: 0 text; for block number n, 2n + 1 its codes, 2n + 2 its codes or the
    stop code.
    """

    text_size: int
    blocks: tuple[Block, ...] = ()

    def __post_init__(self):
        if len(self.blocks) > 1 and any(b.start < self.text_size for b in self.blocks):
            raise ValueError(
                "codes lie among the ids of text, and there is another block: the codes of "
                "several are behind the text."
            )

    @property
    def vocab_size(self) -> int:
        """One past the largest id."""
        ends = (block.start + block.ids for block in self.blocks)
        return max([self.text_size, *ends])

    @property
    def text(self) -> tuple[int, int]:
        """The ids of text, as in `ranges`."""
        for block in self.blocks:
            if block.start < self.text_size:
                return block.start + block.ids, block.start
        return 0, self.text_size

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Per stream the ids it allows: (first, one past the last).

        (9, 4) goes round: all ids but 4 .. 8.
        """
        out = [self.text]
        for b in self.blocks:
            out += [(b.start, b.start + b.size), (b.start, b.start + b.ids)]
        return tuple(out)

    def block(self, kind: str) -> Block:
        """The block of a kind; raises ValueError naming the kinds there are."""
        for block in self.blocks:
            if block.kind == kind:
                return block
        raise ValueError(
            f"the model has no {kind}; it has {[b.kind for b in self.blocks] or 'text'}."
        )

    def streams(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream of each token, and whether it was forced; both [n].

            tokens   a  <|audio|>  7  9  stop  b      stop forced only at full length
            stream   0  0          3  4  4     0

        Raises:
          ValueError: codes outside a block, or a block that its grammar does not allow.
        """
        stream = np.zeros(len(tokens), np.int32)
        forced = np.zeros(len(tokens), bool)
        openers = {block.open_id: n for n, block in enumerate(self.blocks)}
        at = 0
        for place in np.flatnonzero(np.isin(tokens, list(openers))):
            if place < at:
                continue
            number = openers[int(tokens[place])]
            self._check_text(tokens[at:place])
            at = self._block_end(tokens, int(place) + 1, number, stream, forced)
        self._check_text(tokens[at:])
        return stream, forced

    def whole(self, tokens: np.ndarray) -> int:
        """How many of the tokens [n] come before a block that they do not end."""
        openers = {block.open_id: block for block in self.blocks}
        at = 0
        for place in np.flatnonzero(np.isin(tokens, list(openers))):
            if place < at:
                continue
            block, first = openers[int(tokens[place])], int(place) + 1
            at = first + block.fits(tokens[first:]) + block.stop
            if at > len(tokens) or (not block.stop and at - first < block.total):
                return int(place)
        return len(tokens)

    def _block_end(self, tokens, first, number, stream, forced):
        """Fill in one block that begins at `first`; returns where it ends."""
        block = self.blocks[number]
        count, plan = block.fits(tokens[first:]), block.template
        full, end = count == len(plan), first + count
        if not block.stop:
            if not full:
                raise ValueError(
                    f"an {block.kind} block has {count} codes of "
                    f"{tokens[first : first + len(plan)]}."
                )
            stream[first:end] = np.where(plan < 0, 2 * number + 1, 0)
            forced[first:end] = plan >= 0
            return end
        stopped = end < len(tokens) and tokens[end] == block.start + block.size
        if not stopped or count == 0 or count % block.frame:
            raise ValueError(
                f"an {block.kind} block of {count} codes does not end with its stop code "
                f"after whole frames of {block.frame}."
            )
        may_stop = np.arange(count + 1) % block.frame == 0
        may_stop[0] = False
        stream[first : end + 1] = 2 * number + 1 + may_stop
        forced[end] = full
        return end + 1

    def _check_text(self, tokens):
        first, end = self.text
        low, high = tokens >= first, tokens < end
        text = low | high if first > end else low & high
        if not text.all():
            raise ValueError(
                f"media code {int(tokens[~text][0])} stands outside a block."
            )


@flax.struct.dataclass
class State:
    """Where each row of a batch stands; both [B] int32.

    Attributes:
      inside: 0 in text, else 1 + the block's number.
      count: tokens of the block so far.
    """

    inside: jax.Array
    count: jax.Array


def initial(rows: int) -> State:
    """Every row in text."""
    return State(jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.int32))


def after(grammar: Grammar, tokens: jax.Array) -> State:
    """Of rows of text whose last tokens [B] are given: an opener opens its block."""
    return advance(grammar, initial(len(tokens)), tokens)


def _table(grammar, name):
    """[blocks + 1] int32 of a block's field; entry 0 is text's, and never used."""
    values = [int(getattr(block, name)) for block in grammar.blocks]
    return jnp.array([1, *values], jnp.int32)


def allowed(grammar: Grammar, state: State) -> tuple[jax.Array, jax.Array]:
    """The ids each row may take next, as [B] first and one past the last."""
    start, size, length, stop, frame = (
        _table(grammar, n)[state.inside]
        for n in ("start", "size", "length", "stop", "frame")
    )
    full = (stop > 0) & (state.count == length)
    may_stop = (stop > 0) & (state.count > 0) & (state.count % frame == 0)
    low = jnp.where(full, start + size, start)
    high = start + size + may_stop
    plans = [np.full(1, -1), *(block.template for block in grammar.blocks)]
    width = max(map(len, plans))
    plans = [np.pad(p, (0, width - len(p)), constant_values=-1) for p in plans]
    forced = jnp.array(np.stack(plans))[
        state.inside, jnp.minimum(state.count, width - 1)
    ]
    low = jnp.where(forced >= 0, forced, low)
    high = jnp.where(forced >= 0, forced + 1, high)
    text, (first, end) = state.inside == 0, grammar.text
    return jnp.where(text, first, low), jnp.where(text, end, high)


def advance(grammar: Grammar, state: State, tokens: jax.Array) -> State:
    """The state after each row took a token [B]."""
    opened = jnp.zeros_like(state.inside)
    for number, block in enumerate(grammar.blocks, start=1):
        opened = jnp.where(tokens == block.open_id, number, opened)
    start, size, total, stop = (
        _table(grammar, n)[state.inside] for n in ("start", "size", "total", "stop")
    )
    count = state.count + 1
    stopped = tokens == start + size
    done = jnp.where(stop > 0, stopped, count == total)
    text = state.inside == 0
    inside = jnp.where(text, opened, jnp.where(done, 0, state.inside))
    return State(inside, jnp.where(text | done, 0, count))
