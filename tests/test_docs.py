"""The site of docs/: it builds, and what it tells people to type works."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alanything_jax import experiment as recipes
from alanything_jax.cli import data as data_verbs
from alanything_jax.cli import plan, recipe
from alanything_jax.cli.main import VERBS, main
from alanything_jax.data import media
from alanything_jax.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^ *```(\w+)(?: title=\"(.+?)\")?\n(.*?)^ *```$", re.M | re.S)


def generator():
    """docs/_generate.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(
        "docs_generate", DOCS / "_generate.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = generator()


def texts():
    """(page, Markdown) in the order of the site, what is included put in, made pages last."""
    order = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    for name in order:
        if (DOCS / name).exists():
            text = (DOCS / name).read_text("utf-8")
            yield (
                name,
                re.sub(r'^--8<-- "(.+?)(?::\d*:?)?"$', _included, text, flags=re.M),
            )
    found = [docstring for path in MAKE.recipe_files().values() for docstring in [path]]
    lines = [line for path in found for line, _ in MAKE.docstring(path)[1]]
    yield "recipes.md", "```bash\n" + "\n".join(lines) + "\n```\n"


def _included(match):
    return (ROOT / match[1]).read_text("utf-8")


TEXTS = dict(texts())


def fences(*languages):
    """(page, title, text) of every block of code in these languages."""
    for page, text in TEXTS.items():
        for language, title, code in FENCE.findall(text):
            if language in languages:
                yield page, title, code


def commands():
    """(page, argv) of every `alanything ...` line, each command once."""
    seen = set()
    for page, _, code in fences("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "alanything" in words and "..." not in words:
                argv = tuple(words[words.index("alanything") + 1 :])
                if argv not in seen:
                    seen.add(argv)
                    yield page, argv


COMMANDS = list(commands())
IDS = [" ".join(argv) for _, argv in COMMANDS]


def test_commands_are_found():
    pages = {page for page, _ in COMMANDS}
    hand = {"quickstart.md", "concepts.md", "models.md", "data.md", "online.md"}
    hand |= {"tpu_pods.md"}
    assert {"recipes.md", *hand} <= pages
    assert {argv[0] for _, argv in COMMANDS} >= set(VERBS)


@pytest.mark.parametrize("argv", [argv for _, argv in COMMANDS], ids=IDS)
def test_command_parses(argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb, rest = argv[0], list(argv[1:])
    assert verb in VERBS
    if recipe_of(argv):
        if verb == "plan":
            assert recipe.take(rest, "--topology")
            assert all(flag in plan.USAGE for flag in flags(argv) if "." not in flag)
            rest = [word for word in rest if word != "--fit"]
        recipe.parse(verb, rest)
    else:
        asked = [verb, rest[0]] if verb == "data" else [verb]
        assert verb != "data" or rest[0] in data_verbs.VERBS
        known = set(re.findall(r"--[a-z][a-z-]*", MAKE.helped([*asked, "--help"])))
        assert set(flags(argv)) <= known


def recipe_of(argv):
    """The recipe file in a command, if its verb takes one."""
    takes = argv[0] in ("train", "llf", "annotate", "evaluate", "plan")
    return ROOT / argv[1] if takes else None


def flags(argv):
    return [word.split("=")[0] for word in argv if word.startswith("--")]


def test_every_recipe_has_a_row_and_a_command():
    page = MAKE.recipes(DOCS / "plans")
    for name, path in MAKE.recipe_files().items():
        title, found, _ = MAKE.docstring(path)
        assert f"[`{name}`]" in page and title in page
        assert any(f"configs/{name}" in line for line, _ in found), name


def test_plans_become_tables(tmp_path):
    assert "No plan is stored" in MAKE.plan_tables(tmp_path)
    figures = dict.fromkeys(MAKE.COLUMNS) | {"recipe": "r", "topology": "v5e:2x2"}
    figures |= {"chips": 8, "slices": 2, "fits": False, "hbm_gib_per_chip": 17.06}
    figures |= {"hbm_limit_gib": 15.75, "options": ["--compute.remat", "full"]}
    others = ({}, {"recipe": "s"}, {"recipe": "t", "options": []})
    for n, more in enumerate(
        (*others, {"topology": "v5e:1x1", "slices": 1, "chips": 1})
    ):
        (tmp_path / f"{n}.json").write_text(json.dumps(figures | more))
    shown = MAKE.plan_tables(tmp_path)
    assert (
        "### 2 x v5e:2x2: 8 chips of 15.75 GiB\n\nWith `--compute.remat full`" in shown
    )
    assert "| `r` | 17.1 | **no** | – | – | – | – |  | [JSON](plans/0.json)" in shown
    assert "| as it is | [JSON](plans/2.json)" in shown
    alone = shown.partition("### v5e:1x1: one chip")[2]
    assert "| `--compute.remat full` | [JSON](plans/3.json)" in alone


def test_reference_names_every_field_and_verb():
    page = MAKE.config()
    for name in ("Experiment", "Data", "ModelSource", "Compute", "Optimizer", "Train"):
        assert f"{{ #{name.lower()} }}" in page
    for kind in ("lora", "llf", "dpo", "sft", "reward", "critique", "study", "arena"):
        assert f"{{ #{kind} }}" in page
    for field in dataclasses.fields(recipes.Experiment):
        assert f"| `{field.name}` |" in page
    said = MAKE.commands()
    assert all(f"usage: alanything {verb}" in said for verb in VERBS)


def test_tables_of_models_and_data():
    made = MAKE.made()
    for name in MAKE.tables.TABLES:
        assert any(f"<!-- made: {name} -->" in text for text in TEXTS.values()), name
    rows = [line.split(" | ")[:3] for line in made["families"].splitlines()]
    assert ["| `llama`", "text", "text"] in rows
    assert ["| `qwen2_5_omni`", "text, image, audio, video", "text"] in rows
    assert ["| `janus`", "text, image", "text, images drawn"] in rows
    assert ["| `emu3`", "text, image", "text, images in answers"] in rows
    assert {row[0].strip("| `") for row in rows[2:]} == set(FAMILIES)
    assert (
        "| `text-to-audio` | text: `prompt` or `question` | audio: `response_1|2` |"
        in (made["align_anything"])
    )
    assert "| `mimi` | audio | Mimi (Kyutai's" in made["codecs"]
    assert "ShareGPT and LLaMA-Factory rows." in made["formats"]


def test_what_docstrings_say_of_fields_is_found():
    told = MAKE.attributes(recipes.Train)
    assert told["checkpoint_every"] == told["keep"] != ""
    from alanything_jax.hub.source import ModelSource

    told = MAKE.attributes(ModelSource)
    assert told["param_dtype"] == "parameters at rest."
    assert told["compute_dtype"].startswith("what layers compute in")


def test_the_row_in_concepts_is_the_packer_s():
    (text,) = [code for _, title, code in fences("text") if title == "row"]
    shown = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    batch = MAKE.figures.row()
    for name in ("group", "branch", "index", "source"):
        assert shown[name] == [str(n) for n in getattr(batch, name)[0]]
    pairs = zip(batch.group[0], batch.branch[0])
    assert shown["token"] == [MAKE.figures.letter(g, b) for g, b in pairs]


def messages():
    """Every text of the package, `…` in the place of what is filled in."""
    out = []
    for path in (ROOT / "alanything_jax").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                values = node.values
                parts = [
                    v.value if isinstance(v, ast.Constant) else "…" for v in values
                ]
                out.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                out.append(node.value)
    return out


def test_troubleshooting_quotes_the_source():
    known, wrong = messages(), []
    rows = re.findall(r"^\| (`.+?) \|", TEXTS["troubleshooting.md"], re.M)
    assert len(rows) > 40
    for row in rows:
        if "(libtpu's words)" in row:
            continue
        pieces = re.findall(r"[^`…]+", row)
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        pattern = re.compile(".*".join(map(re.escape, pieces)), re.S)
        if not any(map(pattern.search, known)):
            wrong.append(row)
    assert not wrong, "no message of the package says: " + "; ".join(wrong)


def test_files_that_pages_name_are_there():
    named = r"`((?:configs|tpu_scripts|tests)/[\w/.-]+)`"
    for page, text in TEXTS.items():
        for path in re.findall(named, text):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_python_is_python():
    for page, _, code in fences("python"):
        compile(code, page, "exec")


def test_the_site_builds(tmp_path):
    missing = [n for n in ("mkdocs", "material") if not importlib.util.find_spec(n)]
    if missing:
        pytest.skip(f"{missing} not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    how = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--site-dir", str(tmp_path / "site")], **how)
    assert done.returncode == 0, done.stderr
    for place in (
        "recipes",
        "reference/config",
        "reference/commands",
        "troubleshooting",
    ):
        assert (tmp_path / "site" / place / "index.html").stat().st_size > 5_000
    assert (tmp_path / "site" / "img" / "rule.svg").is_file()


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch):
    """In the order of the site, in one folder, one process, each in its smallest form."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "tpu_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for _, title, code in fences("json"):
        (tmp_path / title).write_text(code)
        for name in re.findall(r'"([\w/]+\.png)"', code):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            grey = np.full((64, 64, 3), 128, np.uint8)
            (tmp_path / name).write_bytes(media.dump("image", grey))
    wrong = []
    for page, argv in COMMANDS:
        if argv[:1] == ("train",) and any("gs://" in word for word in argv):
            continue  # A bucket; it was parsed above.
        wrong += [f"{page}: {line}" for line in run(smallest(argv))]
    for page, _, code in fences("python"):
        how = {"capture_output": True, "text": True}
        done = subprocess.run([sys.executable, "-c", code], **how)
        wrong += [f"{page}: {done.stderr}"] if done.returncode else []
    assert not wrong, "\n\n".join(wrong)


def smallest(argv):
    """A command made small; where a recipe has no tiny form, its list of fields."""
    verb, path, argv = argv[0], recipe_of(argv), list(argv)
    if verb == "demo":
        return [*argv, *([] if "--tiny" in argv else ["--tiny"])]
    if verb in ("generate", "chat"):
        return [*argv, "--max-new-tokens", "4"]
    if "--pairs" in argv:
        argv[argv.index("--pairs") + 1] = "40"
        return [*argv, "--workers", "1"]
    if path is None:
        return argv
    whole = recipes.load(path)
    if not isinstance(whole, recipes.Experiment) and "tiny" not in dir(whole):
        return [verb, str(path), "--help"]
    if verb == "plan":
        argv[argv.index("--topology") + 1] = "v5e:1x1"
        argv += ["--compute.block", "128"]  # The least that Pallas lowers for a TPU.
    if (recipe.take(named := list(argv), "--data.path") or "").isupper():
        argv = named  # DATA stands for what a reader has; tiny recipes make their own.
    # Models inside a pipeline must learn to end an answer; others need two steps.
    least = {"steps": "2", "train.steps": "2", "arms": "binary10"}
    few = [(f"--{f}", n) for f, n in least.items() if f in recipe.fields_of(whole)]
    extra = [] if "--tiny" in argv else ["--tiny"]
    return [*argv, *extra, *[word for pair in few for word in pair]]


def run(argv):
    """Run one command; [] or what went wrong."""
    print("$ alanything", shlex.join(argv), flush=True)
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            "sys.stdin", io.StringIO("hi\n")
        )
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code or 0
    if code == 0:
        return []
    print(said.getvalue(), flush=True)
    return [f"{shlex.join(argv)} ended with {code}:\n{said.getvalue()[-2000:]}"]
