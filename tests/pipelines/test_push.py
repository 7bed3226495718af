"""`alanything export --push`: a private repository, and only when told twice."""

import dataclasses
import json
import shlex

import huggingface_hub
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.cli.main import main
from alanything_jax.data.groups import Data
from alanything_jax.pipelines.export import card_notes, push
from tests.pipelines.test_export import CONFIGS, QUIET, tiny

NAME, TOKEN = "me/aligned", "hf_secret"
FILES = {"adapter_model.safetensors", "adapter_config.json", "README.md"}


class Hub:
    """As much of HfApi as is used; what it was told, and whether it is public."""

    calls: list = []
    private, fails = True, ""

    def __init__(self, token):
        self.token = token

    def _told(self, *call):
        type(self).calls.append(call)
        if call[0] == self.fails:
            raise ConnectionError(f"no route for {self.token}")

    def whoami(self):
        self._told("whoami")

    def create_repo(self, name, **options):
        self._told("create_repo", name, options)

    def model_info(self, name):
        return dataclasses.make_dataclass("Info", ["private"])(self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        names = {p.name for p in folder_path.iterdir()}
        self._told("upload_folder", repo_id, names)


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    fake = type("Fake", (Hub,), {"calls": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return fake


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    (config,) = [p for p in CONFIGS if p.stem == "dpo_llama3_8b_lora"]
    folder = tmp_path_factory.mktemp("push")
    return alanything_jax.train(tiny(config, steps=1), folder / "run", **QUIET).path


def test_a_dry_run_and_then_the_command_it_names(run, tmp_path, hub, capsys):
    out = tmp_path / "out"
    argv = ["export", str(run), str(out), "--adapter", "--push", NAME]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert hub.calls == [] and "dry run: nothing is uploaded" in said
    assert f"repository: {NAME}, private" in said
    for path in out.iterdir():
        assert f"{path.stat().st_size:>16,}  {path.name}\n" in said
    (line,) = [line for line in said.splitlines() if line.startswith("to upload them")]
    command = shlex.split(line.partition(": alanything ")[2])
    assert command == [*argv, "--no-dry-run"]
    assert main(command) == 0
    said = capsys.readouterr()
    first, second, third = hub.calls
    assert first == ("whoami",)
    assert second == ("create_repo", NAME, {"private": True, "exist_ok": True})
    assert third[:2] == ("upload_folder", NAME) and FILES <= third[2]
    assert f"uploaded to https://huggingface.co/{NAME}" in said.out
    assert TOKEN not in said.out + said.err
    card = (out / "README.md").read_text()
    for name in ("base", "licence", "recipe", "algorithm", "data", "package"):
        assert f"\n- {name}: " in card
    assert "commit " in card and "library_name: peft" in card


def test_what_is_there_and_is_something_else_is_not_uploaded(run, tmp_path, hub):
    out = alanything_jax.export(run, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not empty, and not what .*--adapter"):
        push(run, out, NAME, adapter=True, dry_run=False, say=lambda _: None)
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"differ: model.safetensors"):
        push(run, out, NAME, dry_run=False, say=lambda _: None)
    manifest = out / "alanything_manifest.json"
    found = json.loads(manifest.read_text())
    found["notes"]["optimizer steps"] = "7"
    manifest.write_text(json.dumps(found | {"sha256": {}}))
    with pytest.raises(ValueError, match=r"differ: optimizer steps"):
        push(run, out, NAME, dry_run=False, say=lambda _: None)
    manifest.unlink()
    with pytest.raises(ValueError, match=r"differ: recipe"):
        push(run, out, NAME, dry_run=False, say=lambda _: None)
    assert {call[0] for call in hub.calls} == {"whoami"}


@pytest.mark.parametrize(
    "change,calls,message",
    [
        ({"private": False}, ["whoami", "create_repo"], "is public: nothing was"),
        ({"fails": "whoami"}, ["whoami"], "ConnectionError: no route for \\*\\*\\*"),
        (
            {"fails": "upload_folder"},
            ["whoami", "create_repo", "upload_folder"],
            "the token may write",
        ),
    ],
    ids=["public", "no network", "refused"],
)
def test_what_the_hub_may_say(change, calls, message, run, tmp_path, hub):
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        push(run, tmp_path / "out", NAME, dry_run=False, say=lambda _: None)
    assert [call[0] for call in hub.calls] == calls
    assert TOKEN not in str(raised.value) and raised.value.__cause__ is None


@pytest.mark.parametrize(
    "options,message",
    [
        (["--push", "aligned", "--no-dry-run"], "write it as owner/name"),
        (["--push", "me/..aligned"], "..aligned"),
        (["--push", NAME, "--no-dry-run"], "no Hugging Face token"),
        (["--no-dry-run"], "for --push OWNER/NAME"),
    ],
)
def test_what_is_asked_wrongly(
    options, message, run, tmp_path, hub, capsys, monkeypatch
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["export", str(run), str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert hub.calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data,restricted",
    [
        (Data("pairs"), False),
        (Data("/home/me/pairs.jsonl", format="align_anything"), True),
        (Data("pairs", subset="ti2t"), True),
        (Data("hf://datasets/PKU-Alignment/align-anything/a.parquet"), True),
    ],
)
def test_the_card_says_what_the_data_allow(data, restricted):
    recipe = dataclasses.replace(recipes.load(CONFIGS[0]), data=data)
    notes = card_notes(recipe, 5)
    assert ("CC-BY-NC-4.0" in notes.get("data licence", "")) == restricted
    assert "/home" not in notes["data"] and notes["optimizer steps"] == 5
