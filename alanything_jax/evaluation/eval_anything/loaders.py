"""The published Eval-Anything data sets, read from directories downloaded from the hub.

    EvalAnything-AMU                   config.json, and its media unpacked beside it
    EvalAnything-InstructionFollowing  text_, image_, audio_, video_instruct
    EvalAnything-Selection_Synergy     one parquet table

No loading script is run. A record without what its rubric asks for is set aside with the
reason; fields that have no place here stay in `extra`. Media are named, not read: their
paths must lie in the data set's directory.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from alanything_jax.data import media, sources
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats.common import need
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.evaluation.eval_anything import amg, scores
from alanything_jax.evaluation.eval_anything.amu import Item, Reference
from alanything_jax.evaluation.eval_anything.following import (
    Choice,
    Instruction,
    parse_choice,
)
from alanything_jax.schema import Modality, Part

Row = Mapping[str, Any]
T = TypeVar("T")

MAX_MEDIA_BYTES = 512 << 20
AMU_FIELDS = ("question_id", "question", "evaluation_dimension", "annotations")
MEDIA_FIELDS = {
    "visual_modality_path": ("image", "video"),
    "auditory_modality_path": ("audio",),
}


def load_amu(root: str | Path, quarantine: Quarantine) -> list[Item]:
    """The items of `<root>/config.json`; their media are parts with a path in `uri`.

    Raises FileNotFoundError, ValueError: no config.json, or not a list.
    """
    root = Path(root)
    return _read(root / "config.json", quarantine, lambda row: amu_item(row, root))


def amu_item(row: Row, root: Path) -> Item:
    """One record of EvalAnything-AMU.

    Raises:
      BadRecord: names the field that is missing, of the wrong kind or outside `root`.
    """
    dimension = re.sub(r"[\s_]+", "-", _text(row, "evaluation_dimension").lower())
    if dimension not in scores.DIMENSIONS:
        why = f"{dimension!r} has no rubric; there are {scores.DIMENSIONS}."
        raise BadRecord("evaluation_dimension", why)
    annotations = need(row, "annotations")
    if not isinstance(annotations, list) or not annotations:
        raise BadRecord("annotations", "a list of people's answers is needed.")
    given = enumerate(annotations)
    references = tuple(_reference(a, f"annotations[{n}]") for n, a in given)
    for sense in ("visual", "auditory"):
        if not any(getattr(reference, sense) for reference in references):
            raise BadRecord(f"annotations[*].keywords.{sense}", "none has a keyword.")
    named = [(_text(row, f), kinds, f) for f, kinds in MEDIA_FIELDS.items()]
    shown = tuple(media_part(root, *place) for place in named)
    id, question = str(need(row, "question_id")), _text(row, "question")
    others = _others(row, *AMU_FIELDS, *MEDIA_FIELDS)
    return Item(id, question, shown, dimension, references, others)


def _reference(annotation, field):
    annotation = _mapping(annotation, field)
    keywords = _mapping(_under(field, annotation, "keywords"), f"{field}.keywords")
    senses = []
    for sense in ("visual", "auditory"):
        words = _under(f"{field}.keywords", keywords, sense)
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, list):
            raise BadRecord(f"{field}.keywords.{sense}", f"no list: {words!r:.60}")
        senses.append(tuple(str(word).strip() for word in words if str(word).strip()))
    return Reference(_text(annotation, "answer", f"{field}.answer"), *senses)


def _mapping(value, field):
    if not isinstance(value, Mapping):
        raise BadRecord(field, f"no mapping of fields: {value!r:.60}")
    return value


def _under(prefix, value, name):
    if value.get(name) is None:
        raise BadRecord(f"{prefix}.{name}", f"missing; it has {sorted(value)}.")
    return value[name]


def media_part(
    root: Path, name: str, kinds: tuple[Modality, ...], field: str = "path"
) -> Part:
    """A part for a file under `root`, which is not opened; its kind by its ending.

    Raises BadRecord: outside `root` (links count where they lead), absent, empty, too
    large, or of another kind.
    """
    base = Path(root).resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base) or Path(name).is_absolute():
        raise BadRecord(field, f"{name!r} leads out of {base}; not read.")
    if not path.is_file():
        raise BadRecord(field, f"no file {name!r} in {base}: unpack its archives.")
    if not 0 < (size := path.stat().st_size) <= MAX_MEDIA_BYTES:
        raise BadRecord(field, f"{name!r} has {size} bytes, not 1..{MAX_MEDIA_BYTES}.")
    for kind in kinds:
        if path.suffix.lower() in media.SUFFIXES[kind]:
            return Part(kind, uri=str(path))
    allowed = [suffix for kind in kinds for suffix in media.SUFFIXES[kind]]
    raise BadRecord(field, f"{name!r} ends in none of {allowed}.")


def load_following(
    root: str | Path, modality: Modality, quarantine: Quarantine
) -> list[Instruction]:
    """`<modality>_instruct` (a file, or one in a directory of that name), or a file.

    The published rows hold one question each; those of one prompt_id become one
    instruction.

    Raises FileNotFoundError, ValueError: no such file, or several.
    """
    path = _only_file(Path(root), f"{modality}_instruct")
    merged: dict[str, Instruction] = {}

    def one(row):
        read = instruction(row, modality)
        first = merged.setdefault(read.id, read)
        if first is read:
            return
        if first.prompt != read.prompt:
            raise BadRecord("prompt", f"another than prompt_id {read.id} had before.")
        taken = {choice.id for choice in first.choices}
        if not read.choices or read.choices[0].id in taken:
            raise BadRecord("question_id", f"again in prompt_id {read.id}.")
        together = first.choices + read.choices
        merged[read.id] = dataclasses.replace(first, choices=together)

    _read(path, quarantine, one)
    return list(merged.values())


def instruction(row: Row, modality: Modality) -> Instruction:
    """One row of EvalAnything-InstructionFollowing.

    Raises BadRecord: audio or video without a question, or a field missing.
    """
    id, prompt = str(need(row, "prompt_id")), _text(row, "prompt")
    if modality in ("text", "image"):
        extra = _others(row, "prompt_id", "prompt")
        return Instruction(id, modality, prompt, extra=extra)
    given = str(need(row, "answer"))
    answer = parse_choice(given)
    if answer is None:
        raise BadRecord("answer", f"{given!r:.60} names no option's letter.")
    used = ("prompt_id", "prompt", "question_id", "question", "choice", "answer")
    question_id, question = str(need(row, "question_id")), _text(row, "question")
    options = _options(need(row, "choice"))
    choice = Choice(question_id, question, options, answer, _others(row, *used))
    return Instruction(id, modality, prompt, (choice,))


def _options(value):
    """Options as lines of text, from text, a list, or letters with their texts."""
    if isinstance(value, list):
        value = {chr(ord("A") + n): text for n, text in enumerate(value)}
    if isinstance(value, Mapping):
        value = "\n".join(f"{letter}. {text}" for letter, text in value.items())
    if not isinstance(value, str) or not value.strip():
        raise BadRecord("choice", "no options.")
    return value


def load_selection(root: str | Path, quarantine: Quarantine) -> list[amg.Votes]:
    """The instructions and votes of EvalAnything-Selection_Synergy.

    Raises FileNotFoundError, ValueError: no parquet table, or several.
    """
    return _read(_only_file(Path(root), "", (".parquet",)), quarantine, votes)


def votes(row: Row) -> amg.Votes:
    """One row of EvalAnything-Selection_Synergy.

    Raises BadRecord: a field missing, or votes that are no distribution.
    """
    given = need(row, "selection")
    try:
        given = json.loads(given) if isinstance(given, str) else dict(given)
        counts = {key: float(value or 0) for key, value in given.items()}
        amg.check_votes(counts)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadRecord("selection", f"no vote distribution: {error}") from error
    id = str(need(row, "instruction_uid"))
    others = _others(row, "instruction_uid", "instruction", "selection")
    return amg.Votes(id, _text(row, "instruction"), counts, others)


def _read(path: Path, quarantine: Quarantine, make: Callable[[Row], T]) -> list[T]:
    """`make` of every row; what it refuses, and a repeated id, is set aside."""
    found, ids = [], set()
    for number, row in sources.rows(path):
        quarantine.seen += 1
        try:
            if isinstance(row, Exception):
                raise BadRecord("row", str(row))
            record = make(_mapping(row, "row"))
            if record is not None and record.id in ids:
                raise BadRecord("id", f"{record.id!r} is there twice.")
        except BadRecord as error:
            quarantine.add(str(path), number, error)
            continue
        if record is not None:
            ids.add(record.id)
            found.append(record)
    return found


def _only_file(root: Path, name: str, suffixes=sources.SUFFIXES) -> Path:
    """The one file for `name` at or under a path."""
    if root.is_file():
        return root
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix in suffixes]
    inside = [p for p in files if name in (*p.relative_to(root).parts[:-1], p.stem)]
    found = inside if name else files
    if not found:
        raise FileNotFoundError(f"{root} holds no {name or 'table'} in {suffixes}.")
    if len(found) > 1:
        names = [str(path.relative_to(root)) for path in found[:5]]
        raise ValueError(f"{root} holds several: {names}; name one file.")
    return found[0]


def _text(row: Row, field: str, name: str = "") -> str:
    value = row.get(field) if name else need(row, field)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(name or field, f"needs text, got {value!r:.60}")
    return value


def _others(row: Row, *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}
