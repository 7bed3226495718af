"""Benchmarks are run by hand: their calls of the package must still be calls of it."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


def known(tree):
    """Name in the script -> what it is, of all that is imported from the package."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(
            "alanything_jax"
        ):
            for alias in node.names:
                module = importlib.import_module(node.module)
                name = alias.asname or alias.name
                if hasattr(module, alias.name):
                    found[name] = getattr(module, alias.name)
                else:
                    found[name] = importlib.import_module(f"{node.module}.{alias.name}")
    return found


def target(node, names):
    """What `a.b.c` stands for, if `a` is known; AttributeError: it is no more."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = target(node.value, names)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            return getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_call_fits_what_is_called(script):
    tree = ast.parse(script.read_text())
    names = known(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            target(node, names)
        if not isinstance(node, ast.Call) or not callable(target(node.func, names)):
            continue
        if any(isinstance(arg, ast.Starred) for arg in node.args):
            continue
        # `**more` may bring what is missing, but not make a wrong name right.
        more = any(keyword.arg is None for keyword in node.keywords)
        named = {k.arg: None for k in node.keywords if k.arg}
        signature = inspect.signature(target(node.func, names))
        bind = signature.bind_partial if more else signature.bind
        try:
            bind(*node.args, **named)
        except TypeError as error:
            pytest.fail(f"{script.name}:{node.lineno}: {ast.unparse(node)}: {error}")


def test_a_call_that_fits_no_more_is_seen(tmp_path):
    text = "from alanything_jax.data import packing\npacking.Layout(1, 2, 3, rows_=4)\n"
    place = tmp_path / "old.py"
    place.write_text(text)
    with pytest.raises(pytest.fail.Exception, match="old.py:2.*rows_"):
        test_every_call_fits_what_is_called(place)
    place.write_text("from alanything_jax.data import packing\npacking.gone\n")
    with pytest.raises(AttributeError, match="gone"):
        test_every_call_fits_what_is_called(place)
