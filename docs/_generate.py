"""Pages made from the code when the site is built; nothing of them is kept by hand.

mkdocs runs it as a hook (mkdocs.yml). `pages()` maps a place in the site to its content,
`made()` a `<!-- made: NAME -->` in a page of docs/ to what stands there:

    recipes.md               a row per file of configs/, tables from docs/plans/*.json
    reference/commands.md    what every verb prints of itself
    reference/config.md      every dataclass that a command line reaches
    img/                     figures of concepts.md, by _figures.py
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # mkdocs takes it out again.
import _figures as figures  # noqa: E402
import _tables as tables  # noqa: E402

COMMAND = re.compile(r"^\s*(alanything \S.*?)(?:\s{2,}(.*))?$")
# Field of a plan's figures (`planning.plan.Plan.to_json`) -> column, how it is written.
COLUMNS = {
    "recipe": ("recipe", "`{}`".format),
    "hbm_gib_per_chip": ("GiB a chip", "{:.1f}".format),
    "fits": ("fits", lambda fits: "yes" if fits else "**no**"),
    "estimated_step_s": ("step, s", "{:.2f}".format),
    "estimated_mfu": ("MFU", "{:.0%}".format),
    "compute_bound_mfu": ("collectives hidden", "{:.0%}".format),
    "tokens_per_s_per_chip": ("tokens/s a chip", "{:,.0f}".format),
}


# -- hooks of mkdocs


def on_files(files: Any, config: Any) -> Any:
    """Put the made pages among those of docs/."""
    from mkdocs.structure.files import File

    for place, content in pages().items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill `<!-- made: NAME -->` in a page with what `made` says."""
    return re.sub(r"<!-- made: (\w+) -->", lambda found: made()[found[1]], markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Keep short code on one line: browsers break names at their hyphens."""
    return re.sub(
        r"<code>([^<]{1,30})</code>", r'<code class="short">\1</code>', content
    )


@functools.cache
def pages() -> dict[str, str | bytes]:
    """Every made page and figure by its place in the site."""
    if (
        str(ROOT) not in sys.path
    ):  # mkdocs runs from anywhere, and resets it after import.
        sys.path.insert(0, str(ROOT))
    return {
        "recipes.md": recipes(ROOT / "docs" / "plans"),
        "reference/commands.md": commands(),
        "reference/config.md": config(),
        "img/rule.svg": figures.rule(),
        **{name: picture for name, (picture, _, _) in figures.pair()[1].items()},
    }


@functools.cache
def made() -> dict[str, str]:
    """Pieces of pages by name."""
    from alanything_jax.data.media import MediaLimits

    found = {name: table(*make()) for name, make in tables.TABLES.items()}
    limits = fields_of(MediaLimits, level=3)
    return {"pair": pair_table(), "limits": limits, **found}


# -- recipes


def recipe_files() -> dict[str, Path]:
    """Name in configs/ -> file."""
    folder = ROOT / "configs"
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*.py"))}


def docstring(path: Path) -> tuple[str, list[tuple[str, str]], str]:
    """A recipe file's first line, its commands with what is said of each, and the rest."""
    from ast import get_docstring, parse

    title, *lines = (get_docstring(parse(path.read_text("utf-8"))) or "").splitlines()
    found = [match.groups("") for match in map(COMMAND.match, lines) if match]
    rest = "\n".join(line for line in lines if not COMMAND.match(line)).strip()
    return title, found, rest


def recipes(plans: Path) -> str:
    """The page of recipes: a table, plans, then commands and notes of each."""
    from alanything_jax import experiment

    out = [
        "# Recipes",
        "A recipe is a Python file with `config()`. Each row below is a file of `configs/`, in "
        "the words of its own docstring; figures in them are the file's. Any field changes on "
        "the command line by its dotted name ([config reference](reference/config.md)). "
        "`--tiny` makes the same recipe small: a random model, made data, no network.",
        "| file | what | type |\n|---|---|---|",
    ]
    notes, known = [], config()
    for name, path in recipe_files().items():
        title, found, rest = docstring(path)
        anchor = slug(name.removesuffix(".py"))
        kind = type(experiment.load(path)).__name__
        link = f"[{kind}](reference/config.md#{kind.lower()})"
        link = link if f"{{ #{kind.lower()} }}" in known else kind
        out[-1] += f"\n| [`{name}`](#{anchor}) | {title} | {link} |"
        pad = max((len(line) for line, _ in found), default=0)
        block = [
            f"{line:<{pad}}{note and '   # ' + note}".rstrip() for line, note in found
        ]
        notes.append(f"## {name.removesuffix('.py')} {{ #{anchor} }}\n\n{title}")
        notes.append("```bash\n" + "\n".join(block) + "\n```")
        notes += [rest] if rest else []
    return "\n\n".join([*out, plan_tables(plans), *notes]) + "\n"


def plan_tables(folder: Path) -> str:
    """What `alanything plan --json` wrote into docs/plans: a table for each topology."""
    files = sorted(folder.glob("*.json"))
    head = (
        "## Plans for TPUs { #plans }\n\nMemory is the TPU compiler's own; step, MFU and "
        "tokens/s are estimates put together from its cycles "
        "([`alanything plan`](reference/commands.md#plan)). "
        "None of it was measured on a chip. MFU is with the collectives that the schedule "
        "leaves in the open, and with all of them hidden."
    )
    if not files:
        return head + " No plan is stored in `docs/plans/` yet: `--json` writes one."
    groups: dict[tuple, list[list[str]]] = {}
    for file in files:
        plan = json.loads(file.read_text("utf-8"))
        cells = [
            "–" if plan[key] is None else write(plan[key])
            for key, (_, write) in COLUMNS.items()
        ]
        cells.append(" ".join(plan.get("options", ())))
        which = (plan["chips"], plan["topology"], plan["slices"], plan["hbm_limit_gib"])
        groups.setdefault(which, []).append([*cells, f"[JSON](plans/{file.name})"])
    names = [name for name, _ in COLUMNS.values()] + ["with", "figures"]
    out = [head]
    for (chips, topology, slices, limit), rows in sorted(groups.items()):
        place = topology if slices == 1 else f"{slices} x {topology}"
        many = "one chip" if chips == 1 else f"{chips} chips"
        out.append(f"### {place}: {many} of {limit:g} GiB")
        if usual := _said_once(rows):
            out.append(f"With `{usual}`, where no other is named.")
        out.append(table(names, rows))
    return "\n\n".join(out)


def _said_once(rows: list[list[str]]) -> str:
    """The options of most rows, which are then not repeated in them; "" if these vary."""
    usual, count = collections.Counter(row[-2] for row in rows).most_common(1)[0]
    usual = usual if count > 1 else ""
    for row in rows:
        other = f"`{row[-2]}`" if row[-2] else "as it is"
        row[-2] = "" if row[-2] == usual else other
    return usual


# -- commands


def commands() -> str:
    """The page of verbs, each as its own --help has it."""
    from alanything_jax.cli import data, main

    out = [
        "# Commands",
        inspect.getdoc(main).partition("\n")[2].strip(),
        fence(helped(["--help"])),
        "`train`, `llf`, `annotate`, `evaluate` and `plan` read a recipe; with one, `--help` "
        "lists its fields, which the [config reference](config.md) has too.",
    ]
    for verb, (module, _) in main.VERBS.items():
        about = inspect.getdoc(importlib.import_module(f"alanything_jax.cli.{module}"))
        more = about.partition("\n")[2].strip()
        out += [f"## {verb} {{ #{verb} }}", *([more] if more else [])]
        out.append(fence(helped([verb, "--help"])))
        for inner in data.VERBS if verb == "data" else ():
            out += [
                f"### data {inner} {{ #data-{inner} }}",
                fence(helped([verb, inner, "--help"])),
            ]
    return "\n\n".join(out) + "\n"


def helped(argv: list[str]) -> str:
    """What a command prints of itself."""
    from alanything_jax.cli.main import main

    said = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="86", NO_COLOR="1", TERM="dumb"):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main(argv)
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()).rstrip()
    return "\n".join(
        textwrap.fill(line, 86, subsequent_indent="  ", break_on_hyphens=False)
        if len(line) > 86
        else line.rstrip()
        for line in text.splitlines()
    )


# -- config


def config() -> str:
    """The page of fields: an experiment, its parts, algorithms, the other recipes."""
    from alanything_jax import experiment
    from alanything_jax.data.groups import Data
    from alanything_jax.hub.source import ModelSource
    from alanything_jax.models.lora import Lora
    from alanything_jax.pipelines.llf import LLF
    from alanything_jax.training.optimizer import Optimizer
    from alanything_jax.training.step import Compute

    out = [
        "# Config",
        "Made from the code. A field is set in a recipe file, or on the command line by its "
        "dotted name: `--optimizer.learning_rate 1e-5` (dashes do as well). A misspelt name is "
        "answered with the nearest. Functions and recipes inside recipes are set in the file "
        "only.",
    ]
    parts = {
        "model": ModelSource,
        "data": Data,
        "adapter": Lora,
        "optimizer": Optimizer,
        "train": experiment.Train,
        "compute": Compute,
    }
    out.append(fields_of(experiment.Experiment))
    out += [fields_of(kind, f"--{name}.*") for name, kind in parts.items()]
    out += ["## Algorithms { #algorithms }", "Their fields are `--algorithm.*`."]
    shown = {experiment.Experiment, *parts.values()}
    for module, kind in algorithms():
        about = inspect.getdoc(module)
        out.append(fields_of(kind, about=about, level=3))
        shown.add(kind)
    out += ["## Other recipes { #other-recipes }", fields_of(LLF, level=3)]
    shown.add(LLF)
    for kind, where in others():
        if kind not in shown:
            shown.add(kind)
            out.append(fields_of(kind, where, level=3))
    return "\n\n".join(out) + "\n"


def algorithms() -> Iterator[tuple[Any, type]]:
    """(module, dataclass) of everything in `algorithms/` that keeps the contract."""
    from alanything_jax import algorithms as package

    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                if dataclasses.is_dataclass(kind) and "roles" in vars(kind):
                    yield module, kind


def others() -> Iterator[tuple[type, str]]:
    """(dataclass, its dotted place) of every recipe in configs/ and what it holds."""
    from alanything_jax import experiment

    def walk(value, prefix):
        yield type(value), f"--{prefix}*" if prefix else ""
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
                yield from walk(inner, f"{prefix}{field.name}.")

    for path in recipe_files().values():
        yield from walk(experiment.load(path), "")


def fields_of(kind: type, where: str = "", about: str = "", level: int = 2) -> str:
    """A heading, what a dataclass says of itself, and its fields."""
    text = inspect.getdoc(kind) or ""
    said, told = text.partition("\nAttributes:")[0].strip(), attributes(kind)
    rows = []
    for field in filter(lambda field: field.init, dataclasses.fields(kind)):
        rows.append([f"`{field.name}`", hint(field), default(field), told[field.name]])
    place = f" `{where}`" if where else ""
    out = [f"{'#' * level} {kind.__name__}{place} {{ #{kind.__name__.lower()} }}", said]
    if about:
        title, _, rest = about.partition("\n")
        out += [f"**{title}**", plain(rest.strip())]
    source = Path(inspect.getsourcefile(kind)).relative_to(ROOT).as_posix()
    out.append(table(["field", "type", "default", "meaning"], rows))
    return "\n\n".join(filter(None, [*out, f"Source: `{source}`"]))


def attributes(kind: type) -> dict[str, str]:
    """Field -> what the `Attributes:` of the docstring say of it ("" = nothing)."""
    names = [field.name for field in dataclasses.fields(kind)]
    told = dict.fromkeys(names, "")
    section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")[2]
    joined = " ".join(
        line.strip() for line in section.partition("\n\n")[0].splitlines()
    )
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    heads = re.compile(rf"(?:^|(?<=\s))((?:{one})(?:, (?:{one}))*): ")
    found = list(heads.finditer(joined))
    for match, after in zip(found, [*found[1:], None]):
        text = joined[match.end() : after.start() if after else None].strip()
        for name in match[1].split(", "):
            told[name] = text
    return told


def hint(field: dataclasses.Field) -> str:
    """A field's type as its file has it; choices are listed, parts linked."""
    text = field.type if isinstance(field.type, str) else field.type.__name__
    name = re.sub(r"^\w+\.", "", text.removesuffix(" | None"))
    parts = (
        "ModelSource Data Lora Optimizer Train Compute Experiment JudgeSource Sampling"
    )
    if name in parts.split():
        return f"[`{text}`](#{name.lower()})"
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices[1].split(", "))
    return f"`{text}`"


def default(field: dataclasses.Field) -> str:
    """A field's default as code; parts of a recipe by their type's name."""
    if field.default is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "*to be given*"
        return f"`{field.default_factory.__name__}()`"
    if dataclasses.is_dataclass(field.default):
        return f"`{type(field.default).__name__}()`"
    if callable(field.default):
        return f"`{field.default.__name__}`"
    written = repr(field.default)
    return f"`{written}`" if len(written) < 60 else f"`{written[:56]}...`"


# -- Markdown


def pair_table() -> str:
    """That record as a table."""
    example, shown = figures.pair()
    words = "".join(message.text for message in example.prompt)
    rows = [
        [f"{name}", f"![{name}]({file}){{ width=96 }}", f"*{said}*"]
        for file, (_, said, name) in sorted(shown.items())
    ]
    head = f"Prompt: *{words}*\n\n"
    return head + table(["answer", "picture", "the oracle's critique"], rows)


def slug(text: str) -> str:
    """An anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def fence(text: str) -> str:
    """Text as it is."""
    return f"```text\n{text}\n```"


def plain(text: str) -> str:
    """A docstring's paragraphs; its indented equations become blocks."""
    blocks = re.split(r"\n\n+", text)
    return "\n\n".join(
        fence(inspect.cleandoc(block)) if block.startswith("    ") else block
        for block in blocks
    )


def table(names: list[str], rows: list[list[str]]) -> str:
    """A table; a cell's bars are escaped where they are no code."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def _cell(text: str) -> str:
    parts = str(text).replace("\n", " ").split("`")
    parts[::2] = [re.sub(r"([|<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
