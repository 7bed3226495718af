"""Rubrics and prompts: text files with `$name` fields, checked when they are read."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "data" / "templates" / "eval_anything"
FIELDS = {
    "amu_perception": set(),
    "amu_reasoning": set(),
    "amu_instruction_following": set(),
    "amu_safety": set(),
    "amu_user": {"question", "references", "response"},
    "amu_reference": {"number", "answer", "visual", "auditory"},
    "follow_text": {"prompt", "response"},
    "follow_image": {"prompt"},
    "follow_choice": {"question", "options"},
    "select": {"prompt"},
}
Templates = Mapping[str, string.Template]


def load(directory: str | Path = DIRECTORY) -> dict[str, string.Template]:
    """Every template of FIELDS, `<directory>/<name>.txt`.

    Raises:
      FileNotFoundError: one is not there.
      ValueError: one has other fields than the code fills in, or a stray `$`.
    """
    found = {}
    for name, fields in FIELDS.items():
        path = Path(directory) / f"{name}.txt"
        template = string.Template(path.read_text("utf-8").strip())
        if not template.is_valid() or set(template.get_identifiers()) != fields:
            wanted = ", ".join(f"${field}" for field in sorted(fields)) or "none"
            raise ValueError(
                f"{path} must have exactly these fields: {wanted}; write $$ for a dollar."
            )
        found[name] = template
    return found


def quoted(text: str) -> str:
    """Material for a judge: double brackets, which mark a verdict, become single ones."""
    return re.sub(r"\[{2,}", "[", re.sub(r"\]{2,}", "]", text)).strip()


def parse_grade(text: str | None) -> int | None:
    """The last `[[n]]` of a judge's reply, 1..10; None where there is none.

    Example: `"Misses the bell. [[4]]"` -> 4; `"[[11]]"`, `"4/10"` -> None.
    """
    grades = re.findall(r"\[\[\s*([^\[\]]*?)\s*\]\]", text or "")
    if not grades or not re.fullmatch(r"[0-9]{1,2}", grades[-1]):
        return None
    return int(grades[-1]) if 1 <= int(grades[-1]) <= 10 else None
