"""Tasks for Label Studio: two responses side by side for people to judge.

`export` writes, for each layout (which media the prompt and the two responses hold), a
folder with `tasks.json`, the labelling interface `labels.xml` and the media as files.
`label_studio.read` takes the annotated tasks back.

What the annotators must not see (models, order, earlier feedback) is in the task's
`alanything` field: hide that column in Label Studio's data manager. Grades are buttons,
not Label Studio's Rating tag: to that, 0 stars is the same as no answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from alanything_jax.data import feedback, media, store
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common
from alanything_jax.data.formats.label_studio import GRADES, SLOTS
from alanything_jax.schema import Example, Message

# What a part is shown as. A GIF is a picture to Label Studio; its Video tag rejects it.
_TAGS = {"text": "Text", "image": "Image", "audio": "Audio", "video": "Video"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which object tags a task shows; those of the prompt after its text."""

    prompt: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    dimensions: tuple[str, ...]

    @property
    def name(self) -> str:
        """A folder's name, such as "text-image--image--image-1f0a"."""
        sides = ("text", *self.prompt), self.first, self.second
        lead = "--".join("-".join(t.lower() for t in side) for side in sides)
        asked = hashlib.sha256(json.dumps(self.dimensions).encode()).hexdigest()[:4]
        return f"{lead}-{asked}"


@dataclasses.dataclass(frozen=True)
class Exported:
    """Tasks per folder, and the ids of the examples left out, with the reason."""

    folders: Mapping[str, int]
    aside: tuple[tuple[str, str], ...]


def export(
    examples: Iterable[Example],
    directory: Path,
    dimensions: Mapping[str, Sequence[str]] = feedback.DIMENSIONS,
    seed: int = 0,
    prefix: str = "media/",
) -> Exported:
    """Write tasks, interfaces and media for examples of two responses each.

    Args:
      dimensions: modality of the responses -> what is graded.
      seed: decides, with the example's id, which response is shown first.
      prefix: what a media file's name is preceded by in the tasks: a path, or a URL such
        as `/data/local-files/?d=round1/media/`.

    Raises ValueError: the directory is not empty, or no example can be shown.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty. Give a new directory.")
    tasks: dict[Layout, list[dict]] = {}
    aside = []
    for example in examples:
        files: dict[str, bytes] = {}
        try:
            layout, row = task(example, dimensions, seed, prefix, files)
        except ValueError as error:
            aside.append((example.id, str(error)))
            continue
        tasks.setdefault(layout, []).append(row)
        folder = directory / layout.name / "media"
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
    if not tasks:
        raise ValueError(f"no example can be shown: {aside[:3]}")
    for layout, rows in tasks.items():
        folder = directory / layout.name
        (folder / "labels.xml").write_text(labels(layout), encoding="utf-8")
        whole = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        (folder / "tasks.json").write_text(whole, encoding="utf-8")
    counts = {layout.name: len(rows) for layout, rows in tasks.items()}
    return Exported(dict(sorted(counts.items())), tuple(aside))


def task(
    example: Example,
    dimensions: Mapping[str, Sequence[str]],
    seed: int,
    prefix: str,
    files: dict[str, bytes],
) -> tuple[Layout, dict[str, Any]]:
    """One task and the layout it needs; its media are added to `files`, by name.

    Raises:
      BadRecord: not two responses, or no dimensions for their modality.
      MediaError: a medium that cannot be decoded.
    """
    if len(example.responses) != 2:
        count = len(example.responses)
        raise BadRecord("responses", f"2 are compared, there are {count}.")
    kind = feedback.modality(example)
    if kind not in dimensions:
        raise BadRecord("responses", f"no dimensions for {kind}: {sorted(dimensions)}.")
    kept = common.map_parts(example, lambda part: [_reference(part, prefix, files)])
    flip = int(hashlib.sha256(f"{seed}:{example.id}".encode()).hexdigest(), 16) % 2
    order = (1, 0) if flip else (0, 1)
    data: dict[str, Any] = {}
    sides = {"prompt": _shown(kept.prompt, "prompt", data)}
    for slot, number in zip(SLOTS, order, strict=True):
        sides[slot] = _shown(kept.responses[number].messages, slot, data)
    layout = Layout(**sides, dimensions=tuple(dimensions[kind]))
    data["alanything"] = {
        "id": example.id,
        "seed": seed,
        "order": list(order),
        "dimensions": list(layout.dimensions),
        "example": store.to_json(kept),
    }
    return layout, {"data": data}


def _reference(part, prefix, files):
    if part.kind == "text" or (part.uri or "").startswith(("http://", "https://")):
        return part
    media.load(part)  # what cannot be decoded cannot be shown
    raw = media.as_file(part, media.MediaLimits().max_bytes)
    name = hashlib.sha256(raw).hexdigest()[:32] + media.suffix_of(raw)
    files[name] = raw
    return dataclasses.replace(part, data=None, uri=prefix + name)


def restore(example: Example, folder: Path, prefix: str = "media/") -> Example:
    """The example with the bytes of its media, from the folder `export` wrote them to.

    Raises BadRecord: a file is not there, or its name leads out of the folder.
    """

    def load(part):
        if part.kind == "text" or not (part.uri or "").startswith(prefix):
            return part
        name = part.uri.removeprefix(prefix)
        place = Path(folder) / name
        if Path(name).name != name or not place.is_file():
            raise BadRecord("uri", f"{part.uri}: no such file in {folder}.")
        return dataclasses.replace(part, data=place.read_bytes(), uri=None)

    return common.map_parts(example, lambda part: [load(part)])


def _shown(messages: Sequence[Message], slot: str, data: dict[str, Any]):
    """Put one side's texts and links into `data`; its tags in order.

    All text of a side is one field with a mark where each medium stands.
    """
    tags, said = [], []
    for part in feedback.transcript(messages, named=len(messages) > 1):
        if part.kind == "text":
            said.append(part.text or "")
            continue
        tag = "Image" if str(part.uri).endswith(".gif") else _TAGS[part.kind]
        tags.append(tag)
        data[f"{slot}_{len(tags)}"] = part.uri
        said.append(f"[{part.kind} {len(tags)}]")
    text = "".join(said)
    words = any(part.kind == "text" for m in messages for part in m.parts)
    if slot == "prompt" or words:
        data[slot] = text
    return tuple(tags) if slot == "prompt" else (*(["Text"] if words else []), *tags)


def labels(layout: Layout) -> str:
    """The labelling interface of a layout, as XML."""
    view = ElementTree.Element("View")
    _header(view, "Request")
    _objects(view, "prompt", ("Text", *layout.prompt))
    pair = ElementTree.SubElement(view, "View", style="display: flex; gap: 2em")
    for slot, title in zip(SLOTS, ("First answer", "Second answer"), strict=True):
        tags = getattr(layout, slot)
        side = ElementTree.SubElement(pair, "View", style="flex: 1")
        _header(side, title)
        target = _objects(side, slot, tags)
        for name in layout.dimensions:
            _header(side, f"{name.replace('_', ' ')} (0 worst, 3 best)")
            _choices(side, f"{slot}_{name}", target, GRADES)
        _area(side, f"{slot}_critique", target, "What is wrong, what is good?")
        _area(side, f"{slot}_refinement", target, "How should it be changed?")
        if tags == ("Text",):
            hint = "A better answer, written out (if you can)"
            _area(side, f"{slot}_rewrite", target, hint)
    _header(view, "Which answer would you rather have?")
    _choices(view, "choice", "prompt", (*SLOTS, "tie"))
    _area(view, "choice_rationale", "prompt", "Why?")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _header(parent, text):
    ElementTree.SubElement(parent, "Header", value=text)


def _objects(parent, slot, tags):
    """The tags that show one side; the name of the first of them."""
    names, media_seen = [], 0
    for tag in tags:
        media_seen += tag != "Text"
        names.append(slot if tag == "Text" else f"{slot}_{media_seen}")
        ElementTree.SubElement(parent, tag, name=names[-1], value=f"${names[-1]}")
    return names[0]


def _choices(parent, name, target, values):
    how = {"choice": "single-radio", "showInline": "true", "required": "true"}
    box = ElementTree.SubElement(parent, "Choices", how, name=name, toName=target)
    for value in values:
        ElementTree.SubElement(box, "Choice", value=value)


def _area(parent, name, target, hint):
    how = {"rows": "3", "maxSubmissions": "1", "editable": "true", "placeholder": hint}
    ElementTree.SubElement(parent, "TextArea", how, name=name, toName=target)
