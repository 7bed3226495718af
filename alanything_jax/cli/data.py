"""`alanything data convert|build|inspect|check`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rich.console
import rich.markup
import rich.progress
import rich.table
import tyro

from alanything_jax.data.encode import Limits, encode
from alanything_jax.pipelines import data, inspect_page, inspect_tokens
from alanything_jax.playground import build as playground
from alanything_jax.schema import Example, Message


@dataclasses.dataclass(frozen=True)
class Read:
    """How a source is read.

    Attributes:
      format: align_anything, hh_rlhf, sharegpt, trl, or auto: by the first row.
      columns: `ours=theirs` pairs, such as prompt=question chosen=good rejected=bad.
      subset: of align_anything: t2t, ti2t, ta2t, tv2t, t2i, t2a, t2v or ti2ti; by default
        the columns tell.
      media_root: folder that paths of media are relative to, or that holds them in tar
        archives; by default the source's own.
    """

    format: str = "auto"
    columns: tuple[str, ...] = ()
    subset: str = ""
    media_root: str = ""

    def source(self, path: str) -> data.Source:
        """A path, to be read so."""
        return data.Source(path, **dataclasses.asdict(self))


def convert(
    source: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    read: tyro.conf.OmitArgPrefixes[Read] = Read(),
    max_bad_share: float = 0.05,
) -> int:
    """Write a source as a TFDS/ArrayRecord data set.

    Args:
      source: .json, .jsonl, .parquet or a data set.
      out: a new directory.
      max_bad_share: share of bad rows above which nothing is written.
    """
    place = read.source(source)
    aside = data.convert(place, out, max_bad_share)
    kept = aside.seen - len(aside.entries)
    print(f"wrote {out}: {kept} of {aside.seen} records ({aside.summary()})")
    if aside.entries:
        print(f"set aside, with reasons: {aside.path}")
    print(f"next: alanything data inspect {out}")
    return 0


def build(
    world: tyro.conf.Positional[Literal["playground"]],
    out: Path,
    pairs: int = 200_000,
    seed: int = 0,
    error: float = 0.1,
    split: Literal["train", "tune", "test"] = "train",
    records_per_shard: int = 10_000,
    workers: int = 0,
    beam: bool = False,
) -> int:
    """Make preference pairs of all modalities, with ratings, critiques, refinements.

    Equal options make equal bytes, however many workers there are. A build that was
    stopped goes on when the same command is given again.

    Args:
      world: what is built.
      out: a new directory.
      pairs: how many records.
      seed: of everything that is drawn.
      error: how often the annotator prefers the worse response.
      split: which combinations of attributes the prompts have.
      records_per_shard: records of a file; a file is what one worker makes at a time.
      workers: processes; 0 = one per core.
      beam: run on Apache Beam's local runner (needs the `beam` extra).
    """
    del world
    recipe = playground.Recipe(pairs, seed, error, split, records_per_shard)
    workers = workers or os.cpu_count() or 1
    with rich.progress.Progress(transient=True) as bar:
        task = bar.add_task("building", total=pairs)

        def show(done):
            bar.update(task, completed=done)

        how = {"workers": workers, "beam": beam, "on_records": show}
        resumed = playground.build(recipe, out, **how)
    found = f", {resumed} shards of them found finished" if resumed else ""
    print(f"wrote {out}: {pairs} pairs in {recipe.num_shards} shards{found}")
    print(f"next: alanything data inspect {out}")
    return 0


def inspect(
    source: tyro.conf.Positional[str],
    read: tyro.conf.OmitArgPrefixes[Read] = Read(),
    row: int = 0,
    count: int = 3,
    model: str = "",
    html: Path | None = None,
) -> int:
    """Show records as they are read.

    Args:
      source: .json, .jsonl, .parquet or a data set.
      row: the first to show.
      count: how many.
      model: its tokenizer and chat template show what is scored, in green.
      html: a page to write instead, with pictures and sound, ratings and critiques.
    """
    place = read.source(source)
    reads = inspect_tokens.reader(model) if model else None
    console = rich.console.Console(highlight=False)
    records, shown = data.some(place, row, count), 0
    if html is not None:
        shown, bad = inspect_page.write_page(html, source, records, reads)
        print(f"wrote {html}: {shown} records, of which {bad} cannot be read")
    for number, example in records:
        shown += 1
        console.rule(f"row {number}")
        if isinstance(example, Exception):
            console.print(f"[red]bad:[/] {rich.markup.escape(str(example))}")
        elif reads is not None:
            _show_tokens(console, example, reads)
        else:
            _show(console, example)
    if not shown:
        print(f"{source} has no row {row}.", file=sys.stderr)
        return 1
    look = "" if html else f"alanything data inspect {source} --html page.html, or "
    print(f"next: {look}alanything data check {source}")
    return 0


def check(
    source: tyro.conf.Positional[str],
    read: tyro.conf.OmitArgPrefixes[Read] = Read(),
    model: str = "",
    max_group_tokens: int = 4096,
) -> int:
    """Read every record and count what is there. Exit code 1 if any is bad.

    Args:
      source: .json, .jsonl, .parquet or a data set.
      model: encode too, with this model's tokenizer and chat template.
      max_group_tokens: the limit that counts as too long.
    """
    place = read.source(source)
    reads = inspect_tokens.reader(model) if model else inspect_tokens.Reader("", None)
    limits = Limits(max_group_tokens=max_group_tokens)
    report = data.check(place, reads.tokenizer, limits, reads.coder)
    table = rich.table.Table("what", "how many")
    table.add_row("records", str(report.records))
    for size, number in sorted(report.responses.items()):
        table.add_row(f"with {size} response{'s' * (size != 1)}", str(number))
    for counter in (report.feedback, report.modalities):
        for name, number in counter.items():
            if number:
                table.add_row(name, str(number))
    for name, values in report.tokens.items():
        told = ", ".join(f"{k} {v}" for k, v in data.quantiles(values).items())
        table.add_row(f"tokens of a {name}", told)
    if report.too_long:
        table.add_row(f"over {max_group_tokens} tokens", str(report.too_long))
    for name, number in report.unknown.items():
        table.add_row(f"unknown column {name}", str(number))
    table.add_row("bad", str(len(report.bad)))
    rich.console.Console().print(table)
    for number, reason in report.bad[:20]:
        print(f"{source} row {number}: {reason}", file=sys.stderr)
    if len(report.bad) > 20:
        print(f"... and {len(report.bad) - 20} more", file=sys.stderr)
    if not report.bad:
        print("sound")
    return 1 if report.bad else 0


def _show(console: rich.console.Console, example: Example) -> None:
    _show_messages(console, "prompt", example.prompt)
    for n, response in enumerate(example.responses):
        chosen = example.feedback.chosen
        word = {True: "chosen", False: "rejected"}[n == chosen]
        name = word if chosen is not None else f"response {n}"
        _show_messages(console, name, response.messages)
    given = {k: v for k, v in vars(example.feedback).items() if v not in (None, ())}
    for title, value in (("feedback", given), ("extra", dict(example.extra))):
        if value:
            console.print(f"[bold]{title}[/] {rich.markup.escape(repr(value))}")


def _show_messages(console, name: str, messages: Sequence[Message]) -> None:
    colour = {"chosen": "green", "rejected": "red"}.get(name, "cyan")
    for message in messages:
        media = [part.kind for part in message.parts if part.kind != "text"]
        said = rich.markup.escape(message.text + "".join(f" <{m}>" for m in media))
        console.print(f"[bold {colour}]{name}[/] [dim]{message.role}[/] {said}")


def _show_tokens(console, example: Example, reads: inspect_tokens.Reader) -> None:
    """The group as the model reads it; scored tokens in green."""
    tokenizer, limits = reads.tokenizer, Limits(max_group_tokens=1 << 30)
    try:
        group = encode(example, tokenizer, limits, reads.coder)
    except ValueError as error:
        console.print(f"[red]bad:[/] {rich.markup.escape(str(error))}")
        return
    prompt = rich.markup.escape(tokenizer.decode(group.prompt))
    console.print(f"[bold cyan]prompt[/] [dim]{len(group.prompt)} tokens[/]\n{prompt}")
    for number, branch in enumerate(group.branches):
        pieces = []
        for start, stop in _runs(branch.scored):
            text = rich.markup.escape(tokenizer.decode(branch.tokens[start:stop]))
            pieces.append(f"[green]{text}[/]" if branch.scored[start] else text)
        told = f"{len(branch.tokens)} tokens, {int(branch.scored.sum())} scored"
        console.print(f"[bold]response {number}[/] [dim]{told}[/]\n{''.join(pieces)}")


def _runs(mask):
    """(start, stop) of the stretches of equal values."""
    cuts = np.flatnonzero(np.diff(mask)) + 1
    edges = [0, *cuts.tolist(), len(mask)]
    return list(zip(edges[:-1], edges[1:], strict=True))


VERBS = {"convert": convert, "build": build, "inspect": inspect, "check": check}


def main(argv: Sequence[str]) -> int:
    """Find the verb, parse, run."""
    about = "SOURCE is .json, .jsonl, .parquet or a converted data set."
    return tyro.extras.subcommand_cli_from_dict(
        VERBS, prog="alanything data", description=about, args=list(argv)
    )
