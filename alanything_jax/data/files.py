"""Small files that are never half-written, and lines that are cut where they are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from alanything_jax.data.store import to_json


def write_aside(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(aside, path)


def lines(path: Path) -> list[Any]:
    """The whole lines of a jsonl file; one cut off by a kill is removed from it."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_aside(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def write_json(path: Path, value: Any) -> None:
    """JSON indented as Hugging Face's files are, whole or not at all."""
    write_aside(path, json.dumps(value, indent=2) + "\n")


def digest(value: Any) -> str:
    """Twelve hex digits of a record's whole content; of a named file only its name."""
    text = json.dumps(to_json(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
