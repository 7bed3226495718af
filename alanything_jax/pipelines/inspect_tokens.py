"""How a model reads a record: its tokens by modality, and the row they are packed in."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alanything_jax.data import fetch, packing
from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import EncodedGroup, Limits, encode
from alanything_jax.hub.load import coder_of, read_model, with_codes
from alanything_jax.hub.source import load_tokenizer
from alanything_jax.models.families import anything
from alanything_jax.pipelines import report_charts as charts
from alanything_jax.pipelines.report_charts import Markup, el
from alanything_jax.playground import lexicon
from alanything_jax.schema import Example


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a model reads records. `coder` is None where it takes text alone."""

    name: str
    tokenizer: Any
    coder: Coder | None = None


def reader(model: str) -> Reader:
    """The reader of what `ModelSource.path` may name; no weights are read.

    Raises ValueError: it has no tokenizer.
    """
    if model.startswith("playground:"):
        tokenizer = lexicon.tokenizer()
        coder = anything.make_coder(tokenizer, 0, lexicon.CODECS)
        return Reader(model, tokenizer, coder)
    tokenizer = load_tokenizer(model)
    place = None if model.startswith("tiny:") else fetch.resolve(model)
    if place is None or not (place / "config.json").is_file():
        return Reader(model, tokenizer)
    known, config, coder = read_model(place)
    if coder is None:
        coder = coder_of(with_codes(known, config, place), tokenizer, config, place)
    return Reader(model, tokenizer, coder)


def show(record: Example, reads: Reader) -> Markup:
    """The row of one group: its bar, its counts, its text as the model reads it."""
    try:
        group = encode(record, reads.tokenizer, Limits(*[1 << 30] * 3), reads.coder)
    except ValueError as error:
        said = f"{reads.name} cannot read it: {error}"
        return el("div", el("p", said, class_="broken"))
    row = packing.one_a_row([group], 1, packing.group_length(group))
    order = range(len(record.responses))
    order = sorted(order, key=lambda n: n != record.feedback.chosen)
    names = ["prompt", *(f"response {n}" for n in order)]
    tokens, branch, scored = row.tokens[0], row.branch[0], row.source[0] >= 0
    kinds = _kinds(group, row.stream[0], reads.coder)
    cuts = (np.diff(branch) != 0) | np.diff(scored) | (kinds[1:] != kinds[:-1])
    edges = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(tokens)]
    bits, text = [], []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        b, kind, counts = int(branch[start]), str(kinds[start]), bool(scored[start])
        style = ("prompt", "first", "other")[min(b, 2)] + " medium" * (kind != "text")
        style += " quiet" * (b > 0 and not counts)
        what = f"{names[b]}, {kind}, {'scored' if counts else 'not scored'}"
        bits.append((what, stop - start, style))
        said = f"[{kind}: {stop - start} tokens]"
        if kind == "text":
            said = reads.tokenizer.decode(tokens[start:stop])
        if b not in branch[:start]:
            text.append(el("h5", names[b]))
        text.append(el("mark", said) if counts else said)
    note = "Grey: the prompt; blue: the first branch; pale: not scored; striped: media."
    return el(
        "div",
        el("h4", f"A row of {len(tokens)} tokens"),
        charts.stack(bits, len(tokens), "; ".join(f"{w}: {n}" for w, n, _ in bits)),
        el("p", note, class_="note"),
        el("div", _counted(names, branch, kinds, scored), class_="scroll"),
        el(
            "details",
            el("summary", "As the model reads it"),
            el("div", text, class_="text"),
        ),
    )


def _counted(names, branch, kinds, scored):
    """Tokens of prompt and responses by modality."""
    found = list(dict.fromkeys(kinds.tolist()))
    head = el("tr", [el("th", x) for x in ("", *found, "all", "scored")])
    rows = []
    for b, name in enumerate(names):
        masks = [*(kinds == kind for kind in found), True, scored]
        sizes = [int(((branch == b) & mask).sum()) for mask in masks]
        cells = [el("td", size, class_="figure") for size in sizes]
        rows.append(el("tr", el("th", name, scope="row"), cells))
    return el("table", el("thead", head), el("tbody", rows), class_="counts")


def _kinds(group: EncodedGroup, stream: np.ndarray, coder: Coder | None) -> np.ndarray:
    """[T] of each token of the row: text, image, audio or video."""
    out = np.full(len(stream), "text", dtype="<U5")
    for number, block in enumerate(coder.grammar.blocks if coder else ()):
        out[(stream == 2 * number + 1) | (stream == 2 * number + 2)] = block.kind
    at = 0
    branches = [(branch.tokens, branch.soft) for branch in group.branches]
    for tokens, soft in [(group.prompt, group.prompt_soft), *branches]:
        for waiting in soft.media if soft else ():
            out[at + waiting.places] = waiting.make().kind
        at += len(tokens)
    return out
