"""Groups to rows: lay each out as `prompt, response 1, ..., response K`, fill rows.

    row of T=12:   p p p a a b b b | q q c .      groups 1 and 2, then padding
    branch         0 0 0 1 1 2 2 2   0 0 1 0
    index          0 1 2 3 4 3 4 5   0 1 2 0
    source        -1-1-1 2 3 2 5 6  -1-1 9-1      who predicts this token

Which groups a step has never changes to fill rows better; only their places do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alanything_jax.data import soft
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.schema import Batch


@dataclasses.dataclass(frozen=True)
class Layout:
    """The one shape that every microbatch of a run has.

    Attributes:
      rows: B. row_tokens: T. groups: G, most groups in a microbatch.
      responses: K, most responses of a group.
      numbers: names of the per-group arrays that the algorithm reads; missing ones are
        an error. A `[K]` array fills `[G, K]`, a scalar `[G]`.
      media: per encoder what a row has of its patches.
    """

    rows: int
    row_tokens: int
    groups: int
    responses: int
    numbers: tuple[str, ...] = ()
    media: tuple[soft.MediaPlan, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A prompt with some of its branches, in one row; `patches` for each of its media."""

    group: int
    branches: tuple[int, ...]
    length: int
    patches: tuple[int, ...] = ()


def group_length(group: EncodedGroup) -> int:
    """Tokens of a group laid out in one row, its prompt once."""
    return len(group.prompt) + sum(len(branch.tokens) for branch in group.branches)


def patches_of(
    group: EncodedGroup, branches: Sequence[int], plans: Sequence[soft.MediaPlan]
) -> tuple[int, ...]:
    """Patches of a prompt and some of its branches, for each encoder."""
    views = [group.prompt_soft, *(group.branches[b].soft for b in branches)]
    media = [w for view in views if view is not None for w in view.media]
    return tuple(
        sum(
            -(-w.patches // plan.merge) * plan.merge
            for w in media
            if w.encoder == plan.name
        )
        for plan in plans
    )


def media_needs(
    groups: Sequence[EncodedGroup], encoders: Sequence[Any]
) -> list[tuple[Any, list[int]]]:
    """The encoders that some group has media for, each with its patches of every group."""
    plans = [soft.plan_of(encoder, 0) for encoder in encoders]
    needs = [patches_of(group, range(len(group.branches)), plans) for group in groups]
    columns = (list(sizes) for sizes in zip(*needs, strict=True))
    pairs = zip(encoders, columns, strict=False)
    return [(encoder, sizes) for encoder, sizes in pairs if any(sizes)]


def _pieces(number: int, group: EncodedGroup, layout: Layout) -> list[Piece]:
    """One piece if the group fits a row, else branches spread over several rows."""
    row_tokens = layout.row_tokens
    pieces, current, used = [], [], len(group.prompt)

    def piece():
        need = patches_of(group, current, layout.media)
        for plan, size in zip(layout.media, need, strict=True):
            if size > plan.budget:
                raise ValueError(
                    f"record {group.id}: {size} patches of {plan.name}, more than a row's "
                    f"{plan.budget}. Raise media_patches, or lower the media's size."
                )
        return Piece(number, tuple(current), used, need)

    for branch, item in enumerate(group.branches):
        alone = len(group.prompt) + len(item.tokens)
        if alone > row_tokens:
            raise ValueError(
                f"record {group.id}: prompt and response {branch} hold {alone} tokens, "
                f"more than a row of {row_tokens}. Lower the data's token limits or "
                "raise row_tokens."
            )
        if used + len(item.tokens) > row_tokens:
            pieces.append(piece())
            current, used = [], len(group.prompt)
        current.append(branch)
        used += len(item.tokens)
    return [*pieces, piece()]


def plan(
    groups: Sequence[EncodedGroup], layout: Layout, couples: bool
) -> list[list[list[Piece]]]:
    """Microbatches of rows of pieces: best fit, longest first.

    With `couples`, all pieces of a group land in one microbatch.

    Raises:
      ValueError: a branch, or a coupled group's rows, exceed what the layout holds.
    """
    cut = [_pieces(n, group, layout) for n, group in enumerate(groups)]
    rows: list[list[Piece]] = []
    bundles: list[list[int]] = []
    for pieces in (p for p in cut if len(p) > 1):
        bundle = list(range(len(rows), len(rows) + len(pieces)))
        if couples and len(bundle) > layout.rows:
            raise ValueError(
                f"record {groups[pieces[0].group].id} needs {len(bundle)} rows of "
                f"{layout.row_tokens} tokens in one microbatch of {layout.rows}: raise "
                "rows_per_microbatch or row_tokens, or lower the token limits."
            )
        rows += [[piece] for piece in pieces]
        bundles += [bundle] if couples else [[row] for row in bundle]
    room = np.array([layout.row_tokens, *(plan.budget for plan in layout.media)])
    free = [room - _size(row[0]) for row in rows]
    single = sorted(
        (p[0] for p in cut if len(p) == 1), key=lambda p: (-p.length, p.group)
    )
    for piece in single:
        size = _size(piece)
        fits = [(space[0], n) for n, space in enumerate(free) if np.all(space >= size)]
        if fits:
            _, row = min(fits)
        else:
            row = len(rows)
            rows.append([])
            free.append(room)
            bundles.append([row])
        rows[row].append(piece)
        free[row] = free[row] - size
    return _microbatches(rows, bundles, layout)


def _size(piece):
    """What a piece takes of a row: tokens, then patches of each encoder."""
    return np.array([piece.length, *piece.patches])


def _microbatches(rows, bundles, layout):
    """Rows that must stay together, in order, cut where a microbatch is full."""
    batches: list[list[list[Piece]]] = [[]]
    for bundle in sorted(bundles, key=len, reverse=True):
        taken = [rows[n] for n in bundle]
        if len(batches[-1]) + len(taken) > layout.rows:
            batches.append([])
        batches[-1] += taken
    return batches


def lay_out(
    groups: Sequence[EncodedGroup],
    rows: list[list[Piece]],
    layout: Layout,
    token_numbers: dict[str, Sequence[Sequence[np.ndarray]]] | None = None,
) -> Batch:
    """One microbatch as numpy arrays.

    Args:
      groups: the step's groups.
      rows: what `plan` put in this microbatch.
      layout: the shape.
      token_numbers: per name, group and branch an array as long as the branch; they
        become [B, T] arrays in `numbers`.

    Raises ValueError: a group lacks one of the layout's numbers.
    """
    shape = (layout.rows, layout.row_tokens)
    ints = {
        name: np.zeros(shape, np.int32)
        for name in ("tokens", "group", "branch", "index", "stream")
    }
    source, response = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    floats = {name: np.zeros(shape, np.float32) for name in token_numbers or {}}
    local = slots(rows)
    table = np.full((layout.groups, layout.responses), -1, np.int32)
    span_ids = np.zeros(shape, np.int32)
    position = np.zeros((shape[0], 3, shape[1]), np.int32)
    placed: list[list[soft.Placed]] = [[] for _ in range(layout.rows)]
    for r, row in enumerate(rows):
        at = spans = 0
        for number, piece in enumerate(row, start=1):
            group, slot = groups[piece.group], local[piece.group]
            head = len(group.prompt)
            view = group.prompt_soft
            parts = [(0, 0, group.prompt, group.prompt_stream, view, None)]
            for b in piece.branches:
                item = group.branches[b]
                parts.append((b + 1, head, item.tokens, item.stream, item.soft, b))
            prompt_end = at + head - 1
            for branch, start, tokens, stream, view, b in parts:
                span = slice(at, at + len(tokens))
                ints["tokens"][r, span] = tokens
                ints["stream"][r, span] = 0 if stream is None else stream
                ints["group"][r, span] = number
                ints["branch"][r, span] = branch
                ints["index"][r, span] = np.arange(start, start + len(tokens))
                position[r, :, span] = ints["index"][r, span]
                if view is not None:
                    position[r, :, span] = view.position
                    # Ids of spans are the row's own.
                    own = view.span
                    span_ids[r, span] = np.where(own > 0, own + spans, 0)
                    spans = int(span_ids[r].max())
                    placed[r] += [
                        soft.Placed(w.make(), at + w.places) for w in view.media
                    ]
                if b is not None:
                    flat = slot * layout.responses + b
                    scored = group.branches[b].scored
                    before = np.arange(at - 1, at - 1 + len(tokens))
                    before[:1] = prompt_end
                    if head == 0 and len(scored):
                        scored = scored & (np.arange(len(scored)) > 0)
                    source[r, span] = np.where(scored, before, -1)
                    response[r, span] = np.where(scored, flat, -1)
                    table[slot, b] = flat
                    for name, values in (token_numbers or {}).items():
                        floats[name][r, span] = values[piece.group][b]
                at += len(tokens)
    return Batch(
        **ints,
        position=position,
        span=span_ids,
        source=source,
        response=response,
        table=table,
        numbers=floats | _numbers(groups, local, layout),
        media={
            plan.name: soft.lay_out(placed, plan, layout.row_tokens)
            for plan in layout.media
        },
    )


def one_a_row(
    groups: Sequence[EncodedGroup],
    rows: int,
    row_tokens: int,
    media: Sequence[soft.MediaPlan] = (),
) -> Batch:
    """Each group's prompt and branches in a row of its own; empty rows up to `rows`."""
    pieces = [
        [Piece(n, tuple(range(len(g.branches))), group_length(g))]
        for n, g in enumerate(groups)
    ]
    most = max(1, *(len(g.branches) for g in groups))
    layout = Layout(rows, row_tokens, len(groups), most, media=tuple(media))
    return lay_out(groups, pieces, layout)


def slots(rows: list[list[Piece]]) -> dict[int, int]:
    """Which row of the table each group of a microbatch has."""
    order = dict.fromkeys(piece.group for row in rows for piece in row)
    return {group: slot for slot, group in enumerate(order)}


def _numbers(groups, local, layout):
    """Per-group arrays by name; a scalar of the record fills [G], a vector [G, K]."""
    out = {}
    for name in layout.numbers:
        missing = [groups[n].id for n in local if name not in groups[n].numbers]
        if missing:
            raise ValueError(
                f"{len(missing)} records have no {name!r} (first: {missing[:3]}), which "
                "this algorithm reads. Add it to the data or turn the option off."
            )
        values = {g: np.asarray(groups[n].numbers[name]) for n, g in local.items()}
        vector = any(value.ndim for value in values.values())
        shape = (layout.groups, layout.responses) if vector else (layout.groups,)
        out[name] = np.zeros(shape, np.float32)
        for g, value in values.items():
            out[name][(g, slice(0, value.size)) if vector else g] = value
    return out


def fill(rows: list[list[Piece]], row_tokens: int) -> float:
    """The share of row tokens that are not padding."""
    used = sum(piece.length for row in rows for piece in row)
    return used / max(1, len(rows) * row_tokens)


def take(
    groups: Sequence[EncodedGroup], rows: list[list[Piece]], values: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    """The inverse of `lay_out` for per-token numbers.

    Args:
      groups, rows: as given to `lay_out`.
      values: [B, T].

    Returns:
      (group, branch) -> an array as long as that branch.
    """
    out = {}
    for r, row in enumerate(rows):
        at = 0
        for piece in row:
            at += len(groups[piece.group].prompt)
            for branch in piece.branches:
                size = len(groups[piece.group].branches[branch].tokens)
                out[piece.group, branch] = values[r, at : at + size]
                at += size
    return out
