"""Learning from rollouts: resumed, replayed on other devices, and with bad rewards."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from alanything_jax import experiment as recipes
from alanything_jax.algorithms.dpo import DPO
from alanything_jax.algorithms.grpo import GRPO
from alanything_jax.algorithms.ppo import PPO
from alanything_jax.algorithms.ppo_lagrangian import PPOLagrangian
from alanything_jax.algorithms.rloo import RLOO
from alanything_jax.data import media
from alanything_jax.data.groups import Data
from alanything_jax.generation.external import External, StalePolicy
from alanything_jax.hub.source import ModelSource, tiny_bundle
from alanything_jax.models.lora import Lora
from alanything_jax.playground.environments import Guess
from alanything_jax.playground.oracle import Oracle
from alanything_jax.rewards import rules
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.training import online, rollout, rollout_file
from tests.cli.test_cli import CONFIGS
from tests.generation.fake_engine import FakeEngine

CHANGE = dataclasses.replace
SLOW = pytest.mark.slow
LENGTH = Rewards((Term("oracle", Oracle()), Term("few", rules.Overlong(8, 8), 0.1)))


def recipe(algorithm=GRPO(), steps=5, name="grpo_playground.py", **changed):
    """The tiny playground recipe with two groups a step, two samples each, unless told."""
    made = recipes.tiny(recipes.load(CONFIGS / name))
    options = {"samples": 3, "max_new_tokens": 10, "rewards": LENGTH} | changed
    return CHANGE(
        made,
        algorithm=algorithm,
        train=CHANGE(
            made.train,
            steps=steps,
            groups_per_step=2,
            checkpoint_every=1,
            keep=steps,
            tensorboard=False,
        ),
        compute=CHANGE(made.compute, row_tokens=64, rows_per_microbatch=2, block=32),
        rollout=CHANGE(made.rollout, **options),
    )


def quiet(line):
    del line


def lines(path, name="metrics.jsonl"):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


PASSES = {"passes": 2, "minibatches": 2}


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: recipe(PPO(kl_weight=0.1), **PASSES), id="ppo"),
        pytest.param(lambda: recipe(lag=1, **PASSES), id="grpo-lag", marks=SLOW),
    ],
)
def test_stopped_in_the_middle_of_a_pass_it_goes_on_as_if_it_had_not(made, tmp_path):
    """tunix#2290: data of a rollout was skipped where passes were more than one."""
    experiment = made()
    whole = online.train(experiment, tmp_path / "whole", quiet)
    # Step 3 is the first of the second pass over the first rollout.
    shutil.copytree(whole.path, tmp_path / "cut")
    for step in (3, 4, 5):
        shutil.rmtree(tmp_path / "cut/checkpoints" / str(step))
    resumed = online.train(experiment, tmp_path / "cut", quiet)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(whole.path, name) == lines(resumed.path, name)
    found = lines(whole.path)
    assert [line["rollout"] for line in found] == [0, 0, 0, 0, 1]
    ages = [0, 1, 2, 3, 4] if experiment.rollout.lag else [0, 1, 2, 3, 0]
    assert [line["policy_age"] for line in found] == ages


def test_every_prompt_of_a_pass_is_seen_once(tmp_path):
    experiment = recipe(**PASSES)
    prepared, prompts, ptx = online.prepare(experiment, tmp_path / "q.jsonl", quiet)
    run = online.run_dir.open_run(tmp_path / "run", experiment)
    rolls = online.Rolls(experiment, prepared, prompts, ptx, run, total=8)
    state = online.State(None, prepared.trainable, None)
    with jax.set_mesh(prepared.mesh):
        ids = [rolls.step(number, state).ids for number in (1, 2, 3, 4)]
    first, second = sorted(ids[0] + ids[1]), sorted(ids[2] + ids[3])
    assert first == second and len(set(first)) == 4
    facts = rolls.current[0].facts
    apart = {name for name in facts if name.startswith("reward_of/")}
    tasks = {prompts[p].record["goal"]["task"] for p in rolls.current[0].places}
    assert apart == {f"reward_of/{task}" for task in tasks}
    size = len(prompts)
    seen = [
        p for n in range(6) for p in rollout.order(0, n * size // 3, size // 3, size)
    ]
    assert sorted(seen) == sorted([*range(size), *range(size)])


@pytest.mark.slow
def test_rollouts_of_one_device_replayed_on_eight(tmp_path):
    mixed = recipe(PPO(kl_weight=0.1), steps=3, **PASSES)
    experiment = CHANGE(mixed, model=CHANGE(mixed.model, compute_dtype="float32"))
    one = online.train(experiment, tmp_path / "one", quiet)
    replay = CHANGE(experiment.rollout, replay=str(one.rollouts))
    compute = CHANGE(experiment.compute, mesh=("fsdp=8",), rows_per_microbatch=8)
    other = CHANGE(experiment, rollout=replay, compute=compute)
    eight = online.train(other, tmp_path / "eight", quiet)
    for a, b in zip(lines(one.path), lines(eight.path), strict=True):
        for name in ("loss", "grad_norm", "loss/value", "kl_old", "reward"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-5), name


def test_the_recorded_log_probs_are_the_trainers(tmp_path):
    """An engine whose weights, temperature or grammar are not the trainer's shows here."""
    made = recipe(recompute=True, sampling=online.rollout.Sampling(temperature=0.7))
    exact = CHANGE(made, model=CHANGE(made.model, compute_dtype="float32"))
    run = online.train(exact, tmp_path, quiet)
    rolled = rollout_file.load(run.rollouts / "000000.npz")
    gaps = [
        np.max(np.abs(a - b)[b != 0], initial=0.0)
        for ours, theirs in zip(rolled.logps, rolled.recorded["old"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert 0 < max(gaps) < 1e-4
    # A forced token has no alternative: the trainer does not score it.
    assert any((b != 0).any() for b in rolled.recorded["old"][0])
    assert lines(run.path)[0]["sampler_weight"] == pytest.approx(1.0, abs=1e-4)


@dataclasses.dataclass(frozen=True)
class Broken:
    """Raises for some answers, is not a number for others."""

    def __call__(self, prompt, response, record):
        if record["num_tokens"] % 3 == 0:
            raise RuntimeError("the judge is away")
        return float("nan") if record["num_tokens"] % 3 == 1 else 0.5


def test_rewards_that_fail_are_counted_and_teach_nothing(tmp_path):
    experiment = recipe(steps=2)
    broken = Rewards((Term("broken", Broken()),))
    experiment = CHANGE(experiment, rollout=CHANGE(experiment.rollout, rewards=broken))
    run = online.train(experiment, tmp_path, quiet)
    found, shown = lines(run.path), lines(run.path, "samples.jsonl")
    assert sum(line["rollout/reward_errors"] for line in found) > 0
    assert any("broken" in line.get("first_error", "") for line in shown)
    # Known rewards are all .5: there is nothing to learn, and nothing is not a number.
    assert all(line["loss"] == 0.0 and line["grad_norm"] == 0.0 for line in found)
    assert all(line["rollout/equal_groups"] == 1.0 for line in found)


@pytest.mark.slow
def test_dynamic_sampling_leaves_out_groups_that_tell_nothing(tmp_path):
    made = recipe(steps=2, rewards=Rewards((Term("oracle", Oracle()),)))
    plain = online.train(made, tmp_path / "plain", quiet)
    dynamic = CHANGE(made, rollout=CHANGE(made.rollout, dynamic=True, max_rounds=20))
    run = online.train(dynamic, tmp_path / "dynamic", quiet)
    first, chosen = (
        rollout_file.load(path.rollouts / "000000.npz") for path in (plain, run)
    )
    assert chosen.cursor > first.cursor
    assert all(len(set(row)) > 1 for row in chosen.rewards.tolist())
    assert rollout_file.load(run.rollouts / "000001.npz").cursor > chosen.cursor


@pytest.mark.slow
def test_online_dpo_learns_from_best_and_worst(tmp_path):
    adapter = Lora(rank=2, alpha=4.0)
    made = recipe(DPO(), steps=2, best_and_worst=True)
    made = CHANGE(made, adapter=adapter, reference="adapter_off")
    run = online.train(made, tmp_path, quiet)
    rolled = rollout_file.load(run.rollouts / "000000.npz")
    assert rolled.rewards.shape == (2, 2)
    assert np.all(rolled.rewards[:, 0] >= rolled.rewards[:, 1])
    assert lines(run.path)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same of all answers, or no number."""

    value: float = 0.5

    def __call__(self, prompt, response, record):
        return self.value


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_online_dpo_learns_nothing_of_answers_that_are_as_good(value, tmp_path):
    """Nor of one without a reward: noise would decide which is preferred."""
    terms = Rewards((Term("same", Constant(value)),))
    made = recipe(
        DPO(nll_weight=1.0), steps=1, best_and_worst=True, rewards=terms, report_by=""
    )
    (line,) = lines(online.train(made, tmp_path, quiet).path)
    assert line["loss"] == 0.0 and line["grad_norm"] == 0.0
    assert ("reward/same" in line) == np.isfinite(value)
    (shown,) = lines(tmp_path, "samples.jsonl")
    assert shown["reward"] == (value if np.isfinite(value) else None)


def test_an_environment_may_be_all_that_rewards(tmp_path):
    rows = [{"prompt": f"guess {n}", "number": 10 * n} for n in (1, 2, 0)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = recipe(steps=1, name="grpo_smollm2.py", environment=Guess())
    made = CHANGE(
        made,
        data=Data(str(tmp_path / "rows.jsonl"), columns=("prompt=prompt",)),
        rollout=CHANGE(made.rollout, rewards=None, max_tokens=40, turns=2),
        compute=CHANGE(made.compute, row_tokens=256),
    )
    made = CHANGE(made, train=CHANGE(made.train, groups_per_step=3))
    (line,) = lines(online.train(made, tmp_path / "run", quiet).path)
    assert line["rollout/tokens"] > 0 and 1 <= line["reward/turns"] <= 2
    # There is no number 0 to guess, and that is said.
    assert line["rollout/reward_errors"] == 3
    (shown,) = lines(tmp_path / "run", "samples.jsonl")
    assert "number=0" in shown["first_error"]


def test_a_lagging_run_makes_no_rollout_too_many_and_replays(tmp_path):
    made = recipe(steps=4, lag=1, passes=2)
    run = online.train(made, tmp_path / "run", quiet)
    assert len(list(run.rollouts.iterdir())) == 2
    replay = CHANGE(made, rollout=CHANGE(made.rollout, replay=str(run.rollouts)))
    again = online.train(replay, tmp_path / "again", quiet)
    assert lines(run.path) == lines(again.path)
    for path in run.rollouts.iterdir():
        assert path.read_bytes() == (again.rollouts / path.name).read_bytes()


def test_a_multiplier_has_bounds_and_outlives_a_rollout_without_costs(tmp_path):
    algorithm = PPOLagrangian(multiplier_rate=1.0, multiplier=8.0)
    assert algorithm.next_multiplier(8.0, 1e6) == pytest.approx(20.0)
    assert algorithm.next_multiplier(8.0, -1e6) == 0.0
    cost = Rewards((Term("none", Constant(float("nan"))),))
    made = recipe(algorithm, steps=2, cost=cost, passes=1, minibatches=1)
    found = lines(online.train(made, tmp_path, quiet).path)
    assert [line["multiplier"] for line in found] == [8.0, 8.0]


@pytest.mark.slow
def test_a_multiplier_grows_while_answers_cost_too_much(tmp_path):
    cost = Rewards((Term("length", rules.Overlong(10, 10), -1.0),))
    algorithm = PPOLagrangian(PPO(kl_weight=0.1), cost_limit=0.1, multiplier_rate=1.0)
    made = recipe(algorithm, steps=3, cost=cost, passes=1)
    found = lines(online.train(made, tmp_path, quiet).path)
    expected = 1.0
    for line in found:
        assert line["multiplier"] == pytest.approx(expected, rel=1e-5)
        expected *= np.exp(expected * (line["cost"] - 0.1))
    assert expected > 1


@pytest.mark.parametrize("adapter", [None, Lora(rank=2, alpha=4.0)])
@pytest.mark.slow
def test_ptx_and_value_models_train(adapter, tmp_path):
    ptx = Data("playground:demonstrations/64", max_group_tokens=64)
    algorithm = PPO(kl_weight=0.1, kl_in="loss", ptx_weight=0.5)
    made = CHANGE(
        recipe(algorithm, steps=2, ptx=ptx, ptx_groups=1, **PASSES),
        adapter=adapter,
        reference="adapter_off" if adapter else "live",
    )
    run = online.train(made, tmp_path, quiet)
    first, second = lines(run.path)
    assert {"loss/policy", "loss/value", "loss/kl", "loss/ptx"} <= set(first)
    assert first["loss/ptx"] > 0 and np.isfinite(second["loss"])


@dataclasses.dataclass(frozen=True)
class Level:
    """The mean of a medium's numbers, from 0 to 1."""

    def __call__(self, prompt, response, record):
        (part,) = response.messages[0].parts
        array, _ = media.load(part)
        return float(np.mean(np.abs(array))) / (255 if array.dtype == np.uint8 else 1)


@pytest.mark.parametrize(
    "kind, algorithm",
    [
        ("image", GRPO()),
        ("image", DPO()),
        *(pytest.param(kind, GRPO(), marks=SLOW) for kind in ("audio", "video")),
    ],
)
def test_a_step_by_a_reward_of_what_was_drawn(kind, algorithm, tmp_path):
    """Answers that are one medium, scored by their pixels or samples: RL, and DPO of the
    brightest picture against the darkest."""
    level, pairs = Rewards((Term("level", Level()),)), isinstance(algorithm, DPO)
    made = recipe(steps=1, output=kind, rewards=level, best_and_worst=pairs)
    compute = CHANGE(made.compute, row_tokens=128)
    made = CHANGE(made, algorithm=algorithm, compute=compute)
    run = online.train(made, tmp_path, quiet)
    rolled = rollout_file.load(run.rollouts / "000000.npz")
    assert rolled.finished.all() and lines(run.path)[0]["grad_norm"] > 0


@pytest.mark.slow
def test_prompts_without_room_for_an_answer_are_listed(tmp_path):
    made = recipe(steps=1)
    tight = CHANGE(made.compute, row_tokens=24)
    run = online.train(CHANGE(made, compute=tight), tmp_path, quiet)
    listed = lines(run.path, "quarantine.jsonl")
    assert listed and all("max_prompt_tokens=14" in entry["reason"] for entry in listed)
    with pytest.raises(ValueError, match="leave no room for a prompt"):
        online.train(CHANGE(made, compute=CHANGE(tight, row_tokens=8)), tmp_path / "no")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda e: CHANGE(e, rollout=None), "set rollout="),
        (lambda e: CHANGE(e, algorithm=RLOO(), reference="cached"), 'is "cached"'),
        (lambda e: CHANGE(e, algorithm=DPO()), "best_and_worst=True"),
        (lambda e: recipe(sampling=rollout.Sampling(top_k=5)), "nothing else"),
        (lambda e: recipe(rewards=Rewards()), "rollout.rewards is empty"),
        (lambda e: recipe(samples=1), "GRPO compares 2 answers or more"),
        (lambda e: recipe(PPOLagrangian()), "set rollout.cost="),
        (lambda e: recipe(ptx_groups=1), "GRPO imitates nothing"),
        (lambda e: recipe(sampling=rollout.Sampling(temperature=0.0)), "above 0"),
    ],
)
def test_recipes_that_do_not_fit_say_why(change, words):
    with pytest.raises(ValueError, match=words):
        change(recipe())


def test_answers_that_one_microbatch_cannot_hold_are_refused_at_once(tmp_path):
    """RLOO compares all answers to a prompt: they must lie in one."""
    made = recipe(RLOO(), samples=8, max_new_tokens=40)
    with pytest.raises(ValueError, match="rows of 64 tokens in one microbatch of 2"):
        online.train(made, tmp_path, quiet)


def test_a_value_model_of_another_shape_is_refused(tmp_path):
    other = ModelSource("playground:24x2")
    made = CHANGE(recipe(PPO(), **PASSES), value=other)
    with pytest.raises(ValueError, match="not of the policy's family and shape"):
        online.train(made, tmp_path, quiet)


@pytest.fixture
def engine():
    found = FakeEngine(tiny_bundle("llama"))
    yield found
    found.close()


def served_by(engine, tmp_path):
    """A text recipe whose answers come from a server."""
    like = Rewards((Term("like", rules.Similarity()),))
    made = recipe(steps=2, name="grpo_smollm2.py", rewards=like)
    external = External(engine.url, str(tmp_path / "weights"), retries=0)
    options = CHANGE(made.rollout, engine=external)
    return CHANGE(made, rollout=options)


def test_a_server_answers_with_the_newest_weights(engine, tmp_path):
    """An engine that never gets new weights: its log-probs would drift from the trainer's."""
    run = online.train(served_by(engine, tmp_path), tmp_path / "run", quiet)
    assert [line["rollout"] for line in lines(run.path)] == [0, 1]
    assert engine.version == "1"
    for line in lines(run.path):
        assert line["sampler_weight"] == pytest.approx(1.0, abs=1e-3)
        assert line["tokens"] > 0
    # Old log-probs are the trainer's: an engine of other weights shows in their ratio.
    rolled = rollout_file.load(run.rollouts / "000000.npz")
    ours, theirs = (
        np.concatenate(x[0]) for x in (rolled.recorded["old"], rolled.logps)
    )
    assert np.any(ours != theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_server_of_older_weights_stops_the_run(engine, tmp_path):
    engine.deaf = True
    with pytest.raises(StalePolicy, match="0"):
        online.train(served_by(engine, tmp_path), tmp_path / "run", quiet)


@pytest.mark.slow
def test_an_answer_that_never_ends_may_be_kept_out_of_the_loss(tmp_path):
    """DAPO's overlong filter: it counts among its group's rewards, and is not learnt."""
    masked = recipe(steps=1, overlong="mask", max_new_tokens=4)
    run = online.train(masked, tmp_path / "mask", quiet)
    rolled = rollout_file.load(run.rollouts / "000000.npz")
    assert not rolled.finished.any()
    (line,) = lines(run.path)
    assert line["loss"] == 0.0 and line["grad_norm"] == 0.0 and line["reward"] != 0.0
