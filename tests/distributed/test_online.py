"""Rollouts of several processes: the answers, scores and steps of one."""

import json
import shutil

import numpy as np
import pytest

from tests.distributed.jobs import RECIPE, Job, assert_same, read

COMMAND = ["-m", "alanything_jax.cli.main", "train"]
COMMAND += [str(RECIPE.with_name("online_recipe.py")), "--run-dir"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with four devices, and two with two; what each said."""
    out = {}
    for count in (1, 2):
        run = tmp_path_factory.mktemp(f"of{count}") / "run"
        job = Job(run, count, 4 // count, program=[*COMMAND, str(run)])
        codes, said = job.end()
        assert codes == [0] * count, said
        out[count] = run, said
    return out


def test_two_processes_roll_and_learn_as_one(runs):
    (one, _), (two, said) = runs[1], runs[2]
    assert_same(read(two), read(one), of_losses=1)
    assert len(read(two)) == 4 and "goodput" not in said[1]
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    for path in sorted((one / "rollouts").glob("*.npz")):
        with np.load(path) as a, np.load(two / "rollouts" / path.name) as b:
            assert sorted(a.files) == sorted(b.files)
            for name in ("places", "tokens", "sizes", "rewards"):
                np.testing.assert_array_equal(a[name], b[name])
            np.testing.assert_allclose(a["logps"], b["logps"], atol=1e-5)


@pytest.mark.slow
def test_two_processes_go_on_in_the_middle_of_a_pass(runs, tmp_path):
    """Step 3 is the first of the second rollout, which is on disk."""
    whole = runs[2][0]
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    job = Job(tmp_path / "run", program=[*COMMAND, str(tmp_path / "run")])
    codes, said = job.end()
    assert codes == [0, 0] and "resuming" in said[0], said
    assert read(tmp_path / "run") == read(whole)


LED = """
import json, sys
from alanything_jax.sharding import distributed
from alanything_jax.training import lead
distributed.distributed_init(lambda line: None)
place = distributed.is_primary()
heard = []

def work(ask):
    assert place, "process 1 does not run it"
    first = ask("a", 2)
    if sys.argv[1] == "fails":
        raise KeyError("judge")
    return first + ask("b", 1)

def together(word, times):
    heard.append(word)
    assert distributed.gather(word) == [word] * 2
    return word * times

try:
    out = lead.led(work, together)
except (KeyError, RuntimeError) as error:
    out = f"{type(error).__name__}: {error}"
print(json.dumps([out, heard]))
"""


@pytest.mark.parametrize(
    "how, expected",
    [
        ("works", [["aab", ["a", "b"]]] * 2),
        (
            "fails",
            [
                ["KeyError: 'judge'", ["a"]],
                ["RuntimeError: process 0 stopped: KeyError: 'judge'", ["a"]],
            ],
        ),
    ],
)
def test_process_0_leads(how, expected, tmp_path):
    codes, said = Job(tmp_path / "run", devices=1, program=["-c", LED, how]).end(60)
    assert codes == [0, 0], said
    assert [json.loads(text.splitlines()[-1]) for text in said] == expected
