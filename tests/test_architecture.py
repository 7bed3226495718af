"""The house rules, read from the source: layers, sizes, what may not be written at all.

Each rule maps {path in the repository: Source} to places that break it. A rule that must
bend gets a dated line in EXCEPTIONS, and loses it again when it is no longer needed.
"""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "alanything_jax"

# (rule, place) -> "YYYY-MM-DD reason"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("budgets", "alanything_jax: "): (
        "2026-11-26 some 13,900 lines over: families and encoders 3,000, codecs 2,400, "
        "preprocessing 1,000, data formats, builders and streams 2,100 came in beside the "
        "study, planning and jobs of several hosts. Tried: httpx for rewards/wire.py saves 8 "
        "lines, the package krippendorff 10. Candidates: pipelines/annotate_* and "
        "label_studio (1,500), report* (900), arena* (700)"
    ),
    ("budgets", "ops+schema+algorithms+training+sharding: "): (
        "2026-11-26 some 1,500 lines over: 22 algorithms are 1,700 lines, the loop from "
        "rollouts 900. Candidates: goodput, writers and run_dir (380) know nothing of "
        "training; roles in RLOO, GRPO and REINFORCE++ are alike"
    ),
    ("swallowed_errors", "alanything_jax/rewards/combine.py:"): (
        "2026-11-26 what a reward raised in its thread is handed on as a value, which "
        "`score` counts or raises; a pool of the standard library would hand it on too, but "
        "waits at exit for rewards that hang, or queues others behind them"
    ),
}

# DESIGN section 2, lowest first. What shares a line may import each other, without cycles.
LAYERS = (
    ("schema", "shapes"),
    ("ops",),
    ("sharding",),
    ("models", "data", "playground"),
    ("algorithms",),
    ("generation", "hub", "checkpoint", "rewards"),
    ("training", "evaluation", "planning", "experiment"),
    ("pipelines",),
    ("__init__",),  # the facade: the command line's verbs as calls
    ("cli",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FAMILY_LINES = 400, 80, 250
SPINE = ("ops", "schema", "algorithms", "training", "sharding")
MAX_SPINE_LINES, MAX_PACKAGE_LINES = 4_000, 20_000

# Bases that describe or carry, and pass on no behaviour of ours: they are no depth.
PLAIN_BASES = (
    r"(\w+\.)*(Protocol|NamedTuple|TypedDict|Generic|\w*Enum|\w*(Error|Exception))"
)
# Imported inside functions only: each costs seconds, or is an extra that may be absent.
LAZY = tuple("transformers tensorflow_datasets apache_beam wandb datasets trl".split())
FRAMEWORKS = ("torch", "tensorflow", "keras", "jaxlib.torch")
MAY_USE_TORCH = (f"{PACKAGE}/hub/verify.py",)
UNSAFE_IMPORTS = tuple("pickle cPickle dill cloudpickle joblib marshal shelve".split())
UNSAFE_CALLS = ("eval", "exec", "hasattr", "__import__")
UNSAFE_FLAGS = ("trust_remote_code", "allow_pickle", "shell", "weights_only")


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: its text and what Python reads in it."""

    text: str
    tree: ast.Module

    @property
    def num_lines(self):
        return len(self.text.splitlines())


def parse(text):
    return Source(text, ast.parse(text))


def package():
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): parse(p.read_text("utf-8")) for p in paths}


def part_of(path):
    """`alanything_jax/data/store.py` -> `data`; the layer's name."""
    return Path(path).parts[1].removesuffix(".py")


def imports(path, tree, files, module_level=False):
    """(line, imported module) pairs; our own modules as paths of files."""
    nodes = at_module_level(tree) if module_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = node.level and Path(path).parts[: -node.level]
            base = ".".join((*(up or ()), *filter(None, [node.module])))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, as_file(name, files) or name


def at_module_level(tree):
    """Every node that runs on import: all but function bodies and TYPE_CHECKING."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def as_file(name, files):
    """The file that `import name` or `from package import name` reads, if it is ours."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    for end in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:end])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in files:
                return path
    return f"{PACKAGE}/{parts[1]}.py" if len(parts) > 1 else None


def functions(tree):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def code_lines(source, node):
    """Lines of a definition without docstring, blank lines and comments."""
    lines = source.text.splitlines()[node.lineno - 1 : node.end_lineno]
    docstrings = set()
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            docstrings |= set(range(first.lineno, first.end_lineno + 1))
    return sum(
        1
        for number, line in enumerate(lines, node.lineno)
        if number not in docstrings and line.strip() and line.strip()[0] != "#"
    )


# --- the rules ---


def file_length(files):
    for path, source in files.items():
        limit = MAX_FAMILY_LINES if "/families/" in path else MAX_FILE_LINES
        if source.num_lines > limit:
            yield f"{path}: {source.num_lines} lines, at most {limit}"


def function_length(files):
    for path, source in files.items():
        for node in functions(source.tree):
            if (size := code_lines(source, node)) > MAX_FUNCTION_LINES:
                yield f"{path}:{node.name}: {size} lines, at most {MAX_FUNCTION_LINES}"


def class_depth(files):
    bases = {
        node.name: [ast.unparse(base).split("[")[0] for base in node.bases]
        for source in files.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }

    def depth(name):
        above = [b for b in bases.get(name, ()) if not re.fullmatch(PLAIN_BASES, b)]
        return max((1 + depth(base.split(".")[-1]) for base in above), default=0)

    for name in bases:
        if depth(name) > 1:
            yield f"{name}: inherits {depth(name)} deep, at most 1; compose instead"


def layers(files):
    for path, source in files.items():
        mine = part_of(path)
        if mine not in LEVEL:
            yield f"{path}: {mine} has no place in LAYERS"
            continue
        if mine == "__init__":
            continue
        for line, target in imports(path, source.tree, files):
            if not target.startswith(f"{PACKAGE}/"):
                continue
            theirs = part_of(target)
            if LEVEL.get(theirs, -1) > LEVEL[mine]:
                yield f"{path}:{line}: {mine} imports {theirs}, which lies above it"
            if mine == "algorithms" and theirs not in ("algorithms", "ops", "schema"):
                yield f"{path}:{line}: an algorithm imports {theirs}; ops and schema only"


def cycles(files):
    graph = {
        path: {t for _, t in imports(path, source.tree, files, True) if t in files}
        for path, source in files.items()
    }

    def reaches(start):
        seen, todo = set(), list(graph[start])
        while todo:
            if (node := todo.pop()) not in seen:
                seen.add(node)
                todo += graph[node]
        return start in seen

    # A package's __init__ may gather its own modules, which import one another.
    for path in graph:
        if not path.endswith("__init__.py") and reaches(path):
            yield f"{path}: imports itself through others, on import"


def lazy_facade(files):
    path = f"{PACKAGE}/__init__.py"
    if path in files:
        for line, target in imports(path, files[path].tree, files, True):
            if target.split("/")[0].split(".")[0] not in ("__future__", "typing"):
                yield f"{path}:{line}: imports {target} on import; do so when called"


def heavy_imports(files):
    for path, source in files.items():
        for line, target in imports(path, source.tree, files, True):
            if target.split(".")[0] in (*FRAMEWORKS, *LAZY):
                yield f"{path}:{line}: imports {target} at module level"
        for line, target in imports(path, source.tree, files):
            if target.split(".")[0] in FRAMEWORKS and path not in MAY_USE_TORCH:
                yield f"{path}:{line}: imports {target}; the core runs without it"


def unsafe(files):
    for path, source in files.items():
        for line, target in imports(path, source.tree, files):
            if target.split(".")[0] in UNSAFE_IMPORTS:
                yield f"{path}:{line}: imports {target}"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield f"{path}:{node.lineno}: bare except"
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                yield f"{path}:{node.lineno}: calls {node.func.id}()"
            for word in node.keywords:
                if word.arg in UNSAFE_FLAGS and ast.unparse(word.value) == (
                    "False" if word.arg == "weights_only" else "True"
                ):
                    yield f"{path}:{node.lineno}: {word.arg}={ast.unparse(word.value)}"


def swallowed_errors(files):
    for path, source in files.items():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler) or node.type is None:
                continue
            broad = re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
            if broad and not any(isinstance(n, ast.Raise) for n in ast.walk(node)):
                yield f"{path}:{node.lineno}: catches everything and raises nothing"


def docstrings(files):
    for path, source in files.items():
        if ast.get_docstring(source.tree) is None:
            yield f"{path}: no docstring"
        todo = [("", node) for node in source.tree.body]
        while todo:
            prefix, node = todo.pop()
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if not isinstance(node, kinds) or node.name.startswith("_"):
                continue
            # A Protocol's property of one `...` is described by its class.
            stub = ast.unparse(node.body[-1]) == "..." and len(node.body) == 1
            if ast.get_docstring(node) is None and not stub:
                yield f"{path}:{prefix}{node.name}: public, without a docstring"
            if isinstance(node, ast.ClassDef):
                todo += [(f"{node.name}.", inner) for inner in node.body]


def budgets(files):
    spine = sum(s.num_lines for p, s in files.items() if part_of(p) in SPINE)
    whole = sum(s.num_lines for s in files.values())
    if spine > MAX_SPINE_LINES:
        yield f"{'+'.join(SPINE)}: {spine} lines, at most {MAX_SPINE_LINES}"
    if whole > MAX_PACKAGE_LINES:
        yield f"{PACKAGE}: {whole} lines, at most {MAX_PACKAGE_LINES}"


def modality_free_algorithms(files):
    for path, source in files.items():
        if part_of(path) != "algorithms":
            continue
        for number, line in enumerate(source.text.splitlines(), 1):
            if found := re.search(r"image|audio|video|pixel|modalit", line, re.I):
                yield f"{path}:{number}: speaks of {found[0]!r}"


RULES = {
    rule.__name__: rule
    for rule in (
        file_length,
        function_length,
        class_depth,
        layers,
        cycles,
        lazy_facade,
        heavy_imports,
        unsafe,
        swallowed_errors,
        docstrings,
        budgets,
        modality_free_algorithms,
    )
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    excused = [place for rule, place in EXCEPTIONS if rule == name]
    broken = [v for v in RULES[name](package()) if not v.startswith(tuple(excused))]
    assert not broken, "\n" + "\n".join(broken)


def test_exceptions_are_dated_and_still_needed():
    files = package()
    for (rule, place), reason in EXCEPTIONS.items():
        assert re.match(r"\d{4}-\d\d-\d\d \S", reason), f"date and reason of {place}"
        assert any(v.startswith(place) for v in RULES[rule](files)), f"drop {place}"


BAD = {
    "file_length": {"ops/a.py": "x = 1\n" * 401},
    "function_length": {"ops/a.py": "def f():\n" + "    x = 1\n" * 80},
    "class_depth": {"ops/a.py": "class A: ...\nclass B(A): ...\nclass C(B): ...\n"},
    "layers": {
        "algorithms/a.py": "def f():\n    from alanything_jax.models import b\n",
        "models/b.py": "from alanything_jax.training import c\n",
        "training/c.py": "",
        "sharding/d.py": "from ..models.b import thing\n",
    },
    "cycles": {
        "data/a.py": "from alanything_jax.data import b\n",
        "data/b.py": "from alanything_jax.data.a import thing\n",
    },
    "lazy_facade": {"__init__.py": "import jax\n"},
    "heavy_imports": {
        "ops/a.py": "import transformers.models\n",
        "ops/b.py": "def f():\n    import torch\n",
        "hub/verify.py": "if True:\n    from torch import nn\n",
    },
    "unsafe": {
        "ops/a.py": "import pickle\n",
        "ops/b.py": "try:\n    eval('1')\nexcept:\n    pass\n",
        "ops/c.py": "hasattr(1, 'a'); f(trust_remote_code=True)\n",
    },
    "swallowed_errors": {"ops/a.py": "try:\n    f()\nexcept Exception:\n    pass\n"},
    "docstrings": {"ops/a.py": '"""A."""\ndef f():\n    return 1\n'},
    "budgets": {f"training/{n}.py": "x = 1\n" * 400 for n in range(11)},
    "modality_free_algorithms": {"algorithms/a.py": "# two images\n"},
}
EXPECTED = {"layers": 3, "heavy_imports": 3, "unsafe": 5, "cycles": 2}


@pytest.mark.parametrize("name", RULES)
def test_rule_sees_what_breaks_it(name):
    planted = {f"{PACKAGE}/{path}": parse(text) for path, text in BAD[name].items()}
    assert len(list(RULES[name](planted))) == EXPECTED.get(name, 1)


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, {PACKAGE}; print(*sys.modules)"
    heavy = {"jax", "numpy", "flax", "torch", "tensorflow", "transformers"}
    assert not heavy & set(run_python(code).split())


@pytest.mark.smoke
def test_every_module_imports_without_torch_tensorflow_or_transformers():
    names = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in package()
    ]
    code = f"""
import importlib, sys
for name in ("torch", "tensorflow", "transformers"):
    sys.modules[name] = None  # any import of it raises
for name in {names}:
    importlib.import_module(name)
"""
    run_python(code)
