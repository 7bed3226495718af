"""Learning from language feedback: what each filter drops, and exact resume after a kill."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alanything_jax import experiment as recipes
from alanything_jax.data import store, views
from alanything_jax.generation.generate import Answer
from alanything_jax.hub.source import playground_bundle
from alanything_jax.pipelines import llf as pipeline
from alanything_jax.pipelines import llf_stages as stages
from alanything_jax.playground import oracle, tasks
from alanything_jax.schema import Critique, Feedback, Message, Part, Response

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "llf_playground.py"
QUIET = {"say": lambda line: None}
WORDS = views.templates("playground")


def shrunk(policy="playground:48x1", **changes):
    """The tiny recipe without training before, and with few steps after."""
    recipe = recipes.load(CONFIG).tiny()
    train = dataclasses.replace(
        recipe.align.train, steps=2, groups_per_step=4, tensorboard=False
    )
    align = dataclasses.replace(
        recipe.align,
        model=dataclasses.replace(recipe.align.model, path=policy),
        train=train,
    )
    changes = {"shard_rows": 8, "prompts": "playground:prompts/40/3"} | changes
    changes = {"feedback": oracle.feedback, "align": align} | changes
    return dataclasses.replace(recipe, base=None, critic="policy", **changes)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A model that has learnt, in a minute at most, to end its answers."""
    base = recipes.tiny(recipes.load(CONFIG).base)
    train = dataclasses.replace(base.train, steps=40, tensorboard=False)
    folder = tmp_path_factory.mktemp("policy")
    return pipeline.trained(
        dataclasses.replace(base, train=train), folder / "run", lambda line: None
    ).path


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    """An uninterrupted run's pairs, as bytes by file name."""
    run = tmp_path_factory.mktemp("whole")
    pipeline.llf(shrunk(policy), run, **QUIET)
    return files(run)


def files(run):
    folder = run / "round-0" / "pairs"
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("after", [0, 6, 12])
def test_stopped_anywhere_and_started_again_gives_the_same_pairs(
    after, policy, whole, tmp_path, monkeypatch
):
    written, plain = [], stages.write_rows

    def dying(path, rows):
        if len(written) == after:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".tmp").write_text('{"half')
            raise KeyboardInterrupt
        written.append(path)
        plain(path, rows)

    monkeypatch.setattr(stages, "write_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline.llf(shrunk(policy), tmp_path, **QUIET)
    again = []
    monkeypatch.setattr(
        stages, "write_rows", lambda path, rows: again.append(path) or plain(path, rows)
    )
    result = pipeline.llf(shrunk(policy), tmp_path, **QUIET)
    assert files(tmp_path) == whole
    assert not set(written) & set(again), "a finished shard was done twice"
    assert [entry["stage"] for entry in result.table] == [
        "sample",
        "critique",
        "refine",
        "verify",
    ]


@pytest.mark.slow
def test_kill_9_and_the_same_command(tmp_path):
    command = [sys.executable, "-m", "alanything_jax.cli.main", "llf", str(CONFIG)]
    command += ["--tiny", "--run-dir"]
    subprocess.run([*command, tmp_path / "whole"], check=True, cwd=ROOT)
    process = subprocess.Popen([*command, tmp_path / "run"], cwd=ROOT)
    shard = tmp_path / "run" / "round-0" / "refine" / "shard-00000.jsonl"
    while process.poll() is None:
        if shard.exists():
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, tmp_path / "run"], check=True, cwd=ROOT)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_pairs_carry_critique_refinement_and_provenance(whole, policy, tmp_path):
    pipeline.llf(shrunk(policy), tmp_path, **QUIET)
    pairs = store.read(tmp_path / "round-0" / "pairs")
    assert len(pairs) > 3
    for number in range(len(pairs)):
        example = pairs[number]
        (told,) = example.feedback.critiques
        assert len(example.responses) == 2 and example.feedback.chosen == 1
        assert oracle.says_good(told.text) is not None and told.response == 0
        assert store.to_json(told.refinement) == store.to_json(example.responses[1])
    line = (tmp_path / "round-0" / "refine" / "shard-00000.jsonl").read_text()
    made = json.loads(line.splitlines()[0])["made"]
    assert set(made) == {"sample", "critique", "refine"}
    assert all(set(m) == {"weights", "seed"} for m in made.values())
    assert len({m["seed"] for m in made.values()}) == 3


def test_another_recipe_in_the_same_directory_is_refused(policy, tmp_path):
    stages.same_recipe(tmp_path / "llf.json", recipes.to_json(shrunk(policy)))
    with pytest.raises(ValueError, match=r"another recipe.*seed.*--run-dir"):
        stages.same_recipe(
            tmp_path / "llf.json", recipes.to_json(shrunk(policy, seed=1))
        )


def text(said):
    return Response((Message("assistant", (Part("text", text=said),)),))


def row(*said, critique="verdict bad . x ."):
    (example,) = tasks.prompts("train", 1, 0, ("i2t",))
    feedback = Feedback(critiques=(Critique(critique, 0),)) if said else Feedback()
    responses = tuple(map(text, said))
    return stages.Row(
        dataclasses.replace(example, responses=responses, feedback=feedback)
    )


CRITIQUES = {
    "": "the critic answered nothing",
    " ": "the critic answered nothing",
    "two red circles": "the critique echoes the answer",
    "nice work": "the critique holds no verdict",
    "verdict maybe .": "the critique holds no verdict",
    "verdict good .": "the critic found nothing wrong",
    "verdict bad . should be three .": "",
    "**Verdict:** bad. It is late.": "",
    "shows two . wanted three . verdict bad .": "",
    "It is a bad verdict": "the critique holds no verdict",
}


@pytest.mark.parametrize("said,why", CRITIQUES.items())
def test_critiques_that_say_nothing_are_named(said, why):
    recipe = shrunk(keep_good=False)
    out = stages._with_critique(row("two red circles"), said, recipe)
    assert out.dropped == why


def answer(said, finished=True):
    return Answer(text(said), said, 0.0, 1, finished, None)


def test_answers_that_are_empty_or_never_end_are_named():
    assert stages._with_response(row(), answer(" "), "the answer").dropped == (
        "the answer is empty"
    )
    cut = stages._with_response(row(), answer("a", False), "the refinement")
    assert cut.dropped == "the refinement never ended"
    assert stages._with_response(row(), answer("a"), "the answer").dropped == ""


@pytest.fixture(scope="module")
def writer():
    return stages.Writer(playground_bundle("48x1"), stages.Sampling(1.0), 4)


@pytest.mark.parametrize(
    "old,new,settings,why",
    [
        ("two red circles", "two red circles", {}, "the refinement equals the answer"),
        ("two red circles", "three red circles", {}, ""),
        (
            "two red circles left",
            "three red circles left",
            {"max_likeness": 0.7},
            "the refinement is a near-duplicate",
        ),
        (
            "two",
            "two red circles left and one blue square top",
            {"max_length_ratio": 2.0},
            "the refinement is much longer",
        ),
    ],
)
def test_refinements_that_teach_nothing_are_named(old, new, settings, why, writer):
    out = stages._checked(row(old, new), writer, shrunk(**settings))
    assert out.dropped == why


def test_verifying_by_critic_rule_and_nothing(writer):
    goal = oracle.goal_of(row().example)["text"][1]
    better, worse = row("red", goal), row(goal, "red")

    def verified(recipe):
        stage = stages.verifier(writer, WORDS, recipe, 8)
        return [r.dropped for r in stage([better, worse], 0)]

    named = "the critic does not call the refinement good"
    assert verified(shrunk(verify="critic")) == ["", named]
    named = "the rule does not score the refinement higher"
    assert verified(shrunk(verify="rule", rule=oracle.rule)) == ["", named]
    assert verified(shrunk(verify="none")) == ["", ""]
    with pytest.raises(ValueError, match='verify="reward" needs reward='):
        shrunk(verify="reward")


@pytest.mark.slow
def test_no_pair_at_all_is_an_error_with_the_table(tmp_path):
    recipe = shrunk(feedback=lambda example, response: "")
    rows = [dataclasses.replace(row("a"), dropped="")]
    stage = stages.critic(None, WORDS, recipe, 8)
    assert stage(rows, 0)[0].dropped == "the critic answered nothing"
    with pytest.raises(ValueError, match="made no pair.*the critic answered nothing"):
        pipeline.make_pairs(
            dataclasses.replace(recipe, max_new_tokens=200),
            recipe.align.model,
            tmp_path,
            0,
            [],
            lambda line: None,
        )


def test_rows_survive_the_disk(tmp_path):
    rows = [row("a", "b"), dataclasses.replace(row("a"), dropped="why")]
    stages.write_rows(tmp_path / "s" / "x.jsonl", rows)
    back = stages.read_rows(tmp_path / "s" / "x.jsonl")
    assert [r.dropped for r in back] == ["", "why"]
    assert back[0].example.responses == rows[0].example.responses
    assert not list(tmp_path.rglob("*.tmp"))


def test_at_most_is_seeded_and_keeps_order():
    rows = [row(str(n)) for n in range(9)]

    def said(count):
        chosen = stages.at_most(rows, count, (0, 0))
        return [int(r.example.responses[0].messages[0].text) for r in chosen]

    assert said(4) == sorted(said(4)) == said(4) and len(set(said(4))) == 4
    assert said(0) == said(9) == list(range(9))
