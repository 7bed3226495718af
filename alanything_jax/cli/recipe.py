"""Reading a recipe from a command line: file, `--tiny`, and dotted overrides by tyro."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from alanything_jax import experiment as recipes
from alanything_jax.models.lora import Lora

# Which verbs take a recipe of a type; others are for `evaluate`.
_VERBS = {
    "Experiment": ("train", "evaluate", "plan"),
    "CodecRecipe": ("train",),
    "LLF": ("llf", "plan"),
    "Annotation": ("annotate",),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A parsed command line: the recipe, and where its run lives (None = default)."""

    experiment: recipes.Experiment
    run_dir: str | None


def parse(
    verb: str, argv: Sequence[str], example: str = "configs/dpo_smollm2.py"
) -> Call:
    """`CONFIG [--tiny] [--run-dir DIR] [--dotted.field VALUE]...`

    Exits with code 2 on bad usage; an unknown field is answered with the nearest one.

    Raises ValueError: the recipe is of another verb.
    """
    argv = list(argv)
    if not argv or argv[0].startswith("-"):
        asked = argv[:1] in (["-h"], ["--help"])
        print(
            f"usage: alanything {verb} CONFIG [--tiny] [--run-dir DIR] "
            "[--dotted.field VALUE]...\n\nCONFIG is a Python file that defines "
            f"`config() -> Experiment`, such as {example}; "
            f"`alanything {verb} CONFIG --help` lists its fields.",
            file=sys.stdout if asked else sys.stderr,
        )
        sys.exit(0 if asked else 2)
    path = argv.pop(0)
    experiment = recipes.load(path)
    kind = type(experiment).__name__
    if verb not in (verbs := _VERBS.get(kind, ("evaluate",))):
        raise ValueError(
            f"{path} is no recipe for `alanything {verb}`: it makes a recipe of type "
            f"{kind}. Run `alanything {verbs[0]} {path}`, or give one such as {example}."
        )
    if "--tiny" in argv:
        argv.remove("--tiny")
        whole = isinstance(experiment, recipes.Experiment)
        small = recipes.tiny if whole else getattr(type(experiment), "tiny", None)
        if small is None:
            raise ValueError(
                f"{path} has no tiny form: it needs data, models and a judge of its own. "
                "Run it without --tiny."
            )
        experiment = small(experiment)
    run_dir = take(argv, "--run-dir")
    return Call(override(experiment, argv, f"alanything {verb} CONFIG"), run_dir)


def take(argv: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from argv and return the value."""
    for n, item in enumerate(argv):
        if item == flag and n + 1 < len(argv):
            del argv[n]
            return argv.pop(n)
        if item.startswith(flag + "="):
            return argv.pop(n).removeprefix(flag + "=")
    return None


def override(experiment: Any, argv: Sequence[str], prog: str) -> Any:
    """The recipe with dotted fields replaced; `--adapter.rank 16` gives it an adapter.

    tyro reads a field's type from its annotation; the algorithm's is a Protocol and an
    adapter may be None, so such fields are narrowed to what the recipe holds.
    """
    if any(item.startswith("--adapter.") for item in argv):
        # Of a recipe that trains all weights.
        if getattr(experiment, "adapter", 0) is None:
            experiment = dataclasses.replace(experiment, adapter=Lora())
    fields = fields_of(experiment)
    for item in argv:
        name = item.split("=")[0].removeprefix("--").replace("-", "_")
        if item.startswith("--") and name not in (*fields, "help"):
            parent, _, leaf = name.rpartition(".")
            if f"{parent}.{leaf.removeprefix('no_')}".strip(".") in fields:
                continue
            near = difflib.get_close_matches(name, fields, 1, cutoff=0.5)
            hint = f" The nearest is --{near[0]}." if near else ""
            print(
                f"error: the recipe has no field --{name}.{hint} "
                f"`{prog} --help` lists them all.",
                file=sys.stderr,
            )
            sys.exit(2)
    default, how = _narrow(experiment), (tyro.conf.AvoidSubcommands,)
    how = {"prog": prog, "default": default, "args": list(argv), "config": how}
    got = tyro.cli(type(default), **how)
    return _widen(got, experiment)


def _narrow(value: Any) -> Any:
    """The value as a dataclass whose fields have the types that they hold.

    Only where a field holds a dataclass: annotations there are unions and Protocols.
    """
    kind = type(value)
    held = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind) if f.init}
    if not any(map(dataclasses.is_dataclass, held.values())):
        return value
    hints = typing.get_type_hints(kind)
    for name, inner in held.items():
        held[name] = _narrow(inner) if dataclasses.is_dataclass(inner) else inner
    fields = [(name, _type(inner, hints[name])) for name, inner in held.items()]
    narrowed = dataclasses.make_dataclass(kind.__name__, fields, frozen=True)
    narrowed.__doc__ = kind.__doc__
    return narrowed(**held)


def _type(value, hint):
    """What tyro is told of a field; what no command line can say stays as it is."""
    if dataclasses.is_dataclass(value):
        return type(value)
    if isinstance(value, str) and not _plain(hint):
        return str
    return hint if _plain(hint) else tyro.conf.Fixed[typing.Any]


def _plain(hint):
    """Whether a type is made of text, numbers, choices and tuples of them."""
    if typing.get_origin(hint) is typing.Literal:
        return True
    args = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if args:
        return all(map(_plain, args))
    return hint in (str, int, float, bool, type(None), Path)


def _widen(got: Any, like: Any) -> Any:
    """The inverse of `_narrow`."""
    if not dataclasses.is_dataclass(like):
        return got
    names = [field.name for field in dataclasses.fields(like) if field.init]
    values = {name: _widen(getattr(got, name), getattr(like, name)) for name in names}
    return type(like)(**values)


def fields_of(value: Any, prefix: str = "") -> list[str]:
    """Every dotted name of a tree of dataclasses."""
    names = []
    for field in filter(lambda field: field.init, dataclasses.fields(value)):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        names.append(name)
        if dataclasses.is_dataclass(inner):
            names += fields_of(inner, name + ".")
    return names
