"""The command line as people meet it: what it prints, how it ends."""

import dataclasses
import io
import json
from pathlib import Path

import pytest

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.cli import recipe
from alanything_jax.cli.main import main
from alanything_jax.hub.source import tiny_bundle
from alanything_jax.models.lora import Lora
from alanything_jax.pipelines import asking
from alanything_jax.pipelines.arena import Arena
from alanything_jax.rewards.judge import Endpoint
from alanything_jax.schema import Message, Part, Response
from tests import toys

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = str(CONFIGS / "dpo_smollm2.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(hub.save(tiny_bundle("qwen3"), tmp_path_factory.mktemp("m") / "model"))


def run(argv):
    """Exit code, however the verb ends."""
    try:
        return main(argv)
    except SystemExit as end:
        return end.code


def test_a_misspelt_field_gets_the_nearest_name(capsys):
    argv = ["train", CONFIG, "--tiny", "--optimizer.learning-rat", "1"]
    assert run(argv) == 2
    assert "The nearest is --optimizer.learning_rate" in capsys.readouterr().err


def test_a_wrong_value_names_the_field(capsys):
    assert run(["train", CONFIG, "--tiny", "--train.steps", "many"]) == 2
    assert "steps" in capsys.readouterr().err


def test_no_recipe_lists_what_there_is(capsys):
    assert run(["train", "configs/none.py"]) == 1
    assert "no recipe at configs/none.py" in capsys.readouterr().err
    assert run(["train"]) == 2
    assert "usage: alanything train CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb,name,right",
    [
        ("evaluate", "annotate", "annotate"),
        ("evaluate", "llf_playground", "llf"),
        ("evaluate", "codecs/image", "train"),
        ("train", "arena", "evaluate"),
        ("llf", "dpo_smollm2", "train"),
        ("annotate", "amu", "evaluate"),
    ],
)
def test_a_recipe_of_another_verb_says_which(verb, name, right, capsys):
    path = str(CONFIGS / f"{name}.py")
    assert run([verb, path]) == 1
    said = capsys.readouterr().err
    assert f"no recipe for `alanything {verb}`" in said and "Traceback" not in said
    assert f"Run `alanything {right} {path}`" in said


def test_train_evaluate_export_verify(tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    options = [
        "--tiny",
        "--run-dir",
        run_dir,
        "--train.steps",
        "2",
        "--algorithm.beta",
        "0.2",
    ]
    assert run(["train", CONFIG, *options]) == 0
    assert f"next: alanything export {run_dir}" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["algorithm"]["beta"] == 0.2
    assert (
        run(["train", CONFIG, "--tiny", "--run-dir", run_dir, "--train.steps", "2"])
        == 1
    )
    assert "algorithm.beta: 0.2 -> 0.1" in capsys.readouterr().err
    assert run(["evaluate", CONFIG, *options]) == 0
    shown = capsys.readouterr().out
    assert (
        "base accuracy" in shown and "aligned accuracy" in shown and "McNemar" in shown
    )
    out = str(tmp_path / "out")
    assert run(["export", run_dir, out]) == 0
    assert run(["export", run_dir, out]) == 1
    assert "never overwrites" in capsys.readouterr().err
    assert run(["verify", out]) == 0
    assert f"{out} is sound" in capsys.readouterr().out.replace("\n", " ")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(["verify", out]) == 1
    assert "model.safetensors is truncated" in capsys.readouterr().err


def test_generate_text_and_files(model, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    argv = ["generate", "--model", model, "--out", str(out), "--max-new-tokens", "4"]
    assert run([*argv, "--prompt", "hello"]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["prompt"] == "hello" and row["responses"][0]["num_tokens"] <= 4
    rows = [{"prompt": [{"role": "user", "content": "a"}], "id": n} for n in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    argv += ["--prompt", str(tmp_path / "in.jsonl"), "--num-samples", "2"]
    assert run([*argv, "--temperature", "1"]) == 0
    back = list(map(json.loads, out.read_text().splitlines()))
    assert [r["id"] for r in back] == [0, 1, 2]
    assert all(len(r["responses"]) == 2 for r in back)
    (tmp_path / "in.jsonl").write_text('{"question": "a"}\n')
    assert run(argv) == 1
    assert "row 0 has no `prompt`" in capsys.readouterr().err


def test_chat_reads_until_the_end(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/reset\n\nyo\n"))
    assert (
        run(["chat", "--model", model, "--max-new-tokens", "3", "--system", "be brief"])
        == 0
    )
    assert capsys.readouterr().out.count("model> ") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\nhi\n"))
    assert run(["chat", "--model", model]) == 0
    assert "model>" not in capsys.readouterr().out


def test_data_convert_inspect_check(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    good = {"prompt": "2+2?", "chosen": "four", "rejected": "five", "lang": "en"}
    source.write_text(
        json.dumps(good) + "\n" + json.dumps({"prompt": "x", "chosn": 1}) + "\n"
    )
    assert run(["data", "check", str(source)]) == 1
    assert "row 1: chosen: missing" in capsys.readouterr().err
    out = str(tmp_path / "set")
    assert run(["data", "convert", str(source), out]) == 1
    assert run(["data", "convert", str(source), out, "--max-bad-share", "0.5"]) == 0
    assert "1 of 2 records (1 bad)" in capsys.readouterr().out
    assert run(["data", "check", out, "--model", "tiny:llama"]) == 0
    assert "sound" in capsys.readouterr().out
    media = ["data", "check", "playground:pairs/12/1/0.1", "--model"]
    assert run([*media, "playground:48x2"]) == 0
    assert "image in prompt" in capsys.readouterr().out
    assert run([*media, "tiny:llama"]) == 1
    assert "takes text only" in capsys.readouterr().err
    assert run(["data", "inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "chosen assistant four" in shown and "'lang': 'en'" in shown
    assert run(["data", "inspect", out, "--model", "tiny:llama"]) == 0
    assert "6 tokens, 5 scored" in capsys.readouterr().out
    assert run(["data", "inspect", out, "--row", "7"]) == 1
    assert run(["data", "conver"]) == 2


@pytest.mark.parametrize("name,other", [("amu", "amg"), ("amg", "amu")])
def test_eval_anything(name, other, tmp_path, monkeypatch, capsys):
    report = {"totals": {name: 4.5}, "problems": {}, "notes": [], "complete": True}
    monkeypatch.setattr("alanything_jax.cli.evaluate.evaluate", lambda *_: report)
    argv = ["evaluate", str(CONFIGS / f"{name}.py"), "--run-dir", str(tmp_path)]
    assert run(argv) == 0
    shown = capsys.readouterr().out
    assert "4.500" in shown and f"wrote {tmp_path}/report.json" in shown
    assert f"next: read those, or alanything evaluate configs/{other}.py" in shown
    assert run([*argv, "--tiny"]) == 1
    assert "has no tiny form" in capsys.readouterr().err


def test_eval_anything_says_what_is_missing(tmp_path, capsys):
    argv = ["evaluate", str(CONFIGS / "amu.py"), "--run-dir", str(tmp_path)]
    assert run([*argv, "--data", str(tmp_path / "none")]) == 1
    assert "PKU-Alignment/EvalAnything-AMU" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("[]")
    argv += ["--data", str(tmp_path), "--judge.url", "http://127.0.0.1:9/v1"]
    assert run(argv) == 1
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9/v1: given up" in err and "--judge.model" in err


def test_annotate(tmp_path, monkeypatch, capsys):
    def stored_model(source, *_):
        said = Response((Message("assistant", (Part("text", text=source.path),)),))
        return lambda prompts: [said] * len(prompts)

    monkeypatch.setattr(asking, "stored_model", stored_model)
    monkeypatch.setattr(asking, "open_judge", lambda *_: toys.annotator)
    prompts = tmp_path / "prompts.jsonl"
    row = {"prompt": "say a", "chosen": "a", "rejected": "b"}
    prompts.write_text(2 * (json.dumps(row) + "\n"))
    argv = [
        "annotate",
        str(CONFIGS / "annotate.py"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    argv += ["--stages.prompts", str(prompts)]
    assert run([*argv, "--label-studio"]) == 0
    shown = capsys.readouterr().out
    assert "yield of 2 prompts" in shown and f"wrote {tmp_path}/run/dataset" in shown
    assert "next: import each folder's tasks.json into Label Studio" in shown
    assert run(argv) == 0  # nothing is left to do
    assert "yield" not in capsys.readouterr().out.partition("wrote")[0]
    assert run([*argv, "--tiny"]) == 1
    assert "has no tiny form" in capsys.readouterr().err


def test_annotate_help(capsys):
    assert run(["annotate", "--help"]) == 0
    assert "such as configs/annotate.py" in capsys.readouterr().out
    assert run(["annotate", str(CONFIGS / "annotate.py"), "--help"]) == 0
    assert "--stages.prompts" in capsys.readouterr().out
    assert run(["--help"]) == 0
    assert "annotate  several models" in capsys.readouterr().out


def test_a_flag_gives_a_recipe_an_adapter():
    whole = recipes.load(CONFIGS / "dpo_llama3_8b.py")
    assert whole.adapter is None
    got = recipe.override(whole, ["--adapter.rank", "8"], "x")
    assert got == dataclasses.replace(whole, adapter=Lora(rank=8))
    assert recipe.override(whole, ["--seed", "0"], "x") == whole


def test_an_endpoint_in_a_recipe_takes_overrides():
    judge = Endpoint("http://localhost:1/v1", "m", max_tokens=7)
    made = Arena((("a", "x"), ("b", "y")), ("hi",), judge, judge_name="m")
    got = recipe.override(made, ["--judge.url", "http://h/v1", "--seed", "3"], "x")
    assert got.judge == Endpoint("http://h/v1", "m", max_tokens=7) and got.seed == 3


def test_errors_are_one_message_without_a_traceback(capsys):
    assert run(["generate", "--model", "/no/such/model", "--prompt", "hi"]) == 1
    err = capsys.readouterr().err
    assert "no model at /no/such/model" in err and "Traceback" not in err
