"""The loop on the tiny recipe: resume, one compile, devices, references, bad input."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.data import pipeline
from alanything_jax.evaluation import heldout
from alanything_jax.training import loop, optimizer, run_dir
from alanything_jax.training import parts as compiled
from alanything_jax.training.prepare import prepare

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "dpo_smollm2.py"
STEPS = 7
COMMAND = [
    sys.executable,
    "-m",
    "alanything_jax.cli.main",
    "train",
    str(CONFIG),
    "--tiny",
]
COMMAND += ["--train.steps", str(STEPS), "--train.checkpoint-every", "2"]
COMMAND += ["--train.no-tensorboard"]


def tiny(steps=3, **changes):
    """The tiny recipe for `steps` steps; `part={field: value}` changes a part of it."""
    recipe = recipes.tiny(recipes.load(CONFIG))
    changes = {"train": {"steps": steps, "checkpoint_every": 2}} | changes
    for name, value in changes.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(recipe, name), **value)
        recipe = dataclasses.replace(recipe, **{name: value})
    return recipe


def lines(path):
    return [
        json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()
    ]


def train(recipe, path):
    alanything_jax.train(recipe, path, say=lambda line: None)
    return lines(path)


def assert_same_numbers(one, other, atol=1e-5):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert abs(a[name] - b[name]) <= atol * max(1, abs(a[name])), (name, a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The metrics file of the command, left alone, and the cache it used."""
    folder = tmp_path_factory.mktemp("whole")
    environment = os.environ | {"ALANYTHING_CACHE": str(folder / "cache")}
    subprocess.run(
        [*COMMAND, "--run-dir", folder / "run"], env=environment, check=True, cwd=ROOT
    )
    return (folder / "run" / "metrics.jsonl").read_bytes(), environment


def killed(path, environment, after):
    """Run the command and `kill -9` it once step `after` is in the metrics file."""
    process = subprocess.Popen(
        [*COMMAND, "--run-dir", path],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    metrics = path / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > after:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    return process.wait()


AFTER = [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 2, 4, 5, 6))]


@pytest.mark.parametrize("after", AFTER)
def test_kill_9_then_the_same_command_gives_the_same_file(
    after, tmp_path, uninterrupted
):
    expected, environment = uninterrupted
    assert killed(tmp_path / "run", environment, after) == -signal.SIGKILL
    subprocess.run(
        [*COMMAND, "--run-dir", tmp_path / "run"], env=environment, check=True, cwd=ROOT
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == expected


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, uninterrupted):
    """A limit on file size stands for a full disk: checkpoints are the only big files."""
    expected, environment = uninterrupted
    killed(tmp_path / "run", environment, 4)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [*COMMAND, "--run-dir", tmp_path / "run"]
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "could not be written" in done.stderr
        and "last good one is of step" in done.stderr
    )
    assert "Traceback" not in done.stderr
    subprocess.run(command, env=environment, check=True, cwd=ROOT)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == expected


def test_every_part_compiles_exactly_once(tmp_path, monkeypatch):
    kept = []
    make = compiled.compile_parts
    monkeypatch.setattr(
        compiled, "compile_parts", lambda *a: kept.append(make(*a)) or kept[-1]
    )
    recipe = tiny(4, compute={"row_tokens": 64, "rows_per_microbatch": 2})
    numbers = train(recipe, tmp_path)
    assert len({line["microbatches"] for line in numbers[1:]}) >= 1
    (parts,) = kept
    sizes = {name: part._cache_size() for name, part in vars(parts).items()}
    # `annotate` sees [M, ...]: one compile for each number of microbatches.
    assert sizes.pop("annotate") == len(
        {line["microbatches"] for line in numbers[1:]}
        | heldout_microbatches(recipe, tmp_path)
    )
    assert set(sizes.values()) <= {1, 0} and sizes["accumulate"] == sizes["apply"] == 1


def heldout_microbatches(recipe, path):
    """How many microbatches the held-out steps have."""
    source = prepare(recipe, path / "q.jsonl", lambda line: None).heldout
    return {len(source[n].microbatches) for n in range(source.num_steps())}


def moved(prepared):
    """Trainable arrays a little off the base, so that no pair is tied."""
    out = {}
    for n, (path, value) in enumerate(sorted(prepared.trainable.items())):
        noise = 0.02 * np.random.default_rng(n).normal(size=value.shape)
        value = np.asarray(value) + noise.astype(value.dtype)
        out[path] = jax.device_put(value, prepared.shardings[path])
    return out


def gradients(recipe, path, say=lambda line: None, change=lambda p: p.trainable):
    """The first step's gradients and sums, on the recipe's mesh."""
    prepared = prepare(recipe, path / "q.jsonl", say)
    transformation = optimizer.make(recipe.optimizer, 4, prepared.rates)
    with jax.set_mesh(prepared.mesh):
        parts = compiled.compile_parts(prepared, transformation)
        data = prepared.train[0]
        batches, counts = compiled.place(parts, prepared, data.microbatches)
        fixed = [parts.frozen(prepared.frozen, batch) for batch in batches]
        batches = compiled.annotate(parts, batches, fixed)
        trainable = change(prepared)
        carry = parts.zeros(trainable, prepared.frozen, batches[0], fixed[0], counts)
        for batch, outputs in zip(batches, fixed, strict=True):
            carry = parts.accumulate(
                trainable, prepared.frozen, batch, outputs, counts, carry
            )
    grads, sums = carry
    return jax.device_get(grads), compiled.means(sums), prepared


@pytest.mark.parametrize(
    "rules", [pytest.param("fsdp", marks=pytest.mark.slow), "fsdp_tensor"]
)
@pytest.mark.slow
def test_an_adapter_on_one_device_equals_eight(rules, tmp_path):
    """Of trained weights, see tests/sharding/test_presets.py."""
    mesh = ("replica=2", "fsdp=2", "tensor=2") if "tensor" in rules else ("fsdp=8",)
    compute = {"row_tokens": 64, "rows_per_microbatch": 8, "rules": rules}
    sharded = compute | {"mesh": mesh}
    one = gradients(tiny(compute=compute), tmp_path, change=moved)
    many = gradients(tiny(compute=sharded), tmp_path, change=moved)
    placed = [a.sharding for a in many[2].trainable.values()]
    assert any(not s.is_fully_replicated for s in placed)
    assert one[1].keys() == many[1].keys()
    for name in one[1]:
        assert abs(one[1][name] - many[1][name]) < 1e-5, name
    for path in one[0]:
        np.testing.assert_allclose(one[0][path], many[0][path], atol=1e-5)


def test_cached_live_and_adapter_off_references_agree(tmp_path):
    runs = [
        train(tiny(reference=source), tmp_path / source)
        for source in ("cached", "live", "adapter_off")
    ]
    for numbers in runs:
        for line in numbers[:2]:
            # Policy and reference are equal until step 1 is done: rounding decides.
            line.pop("reward_accuracy", line.pop("heldout/reward_accuracy", None))
    assert_same_numbers(runs[0], runs[1])
    assert_same_numbers(runs[0], runs[2])
    assert runs[0][-1]["reward_margin"] != 0


@pytest.mark.slow
def test_full_training_with_frozen_parts_and_their_own_rates(tmp_path):
    """Plain SGD, no clipping: every step is rate * gradient, so ratios show the rates."""
    rates = ("*=0", "layers/0/mlp/*=1", "layers/1/mlp/*=0.5")
    settings = {"name": "sgd", "b1": 0.0, "clip_norm": 0.0, "schedule": "constant"}
    settings |= {"learning_rate": 0.1, "warmup_steps": 0, "rates": rates}
    recipe = tiny(1, adapter=None, optimizer=settings)
    grads, _, before = gradients(recipe, tmp_path)
    assert {p.split("/")[2] for p in before.trainable} == {"mlp"}
    start = jax.device_get(before.trainable)
    alanything_jax.train(recipe, tmp_path / "run", say=lambda line: None)
    from alanything_jax.models.params import flatten
    from alanything_jax.training.restore import load_run

    after = flatten(load_run(tmp_path / "run").bundle.params)
    for path, value in after.items():
        name = f"policy/{path}"
        if name not in start:
            np.testing.assert_array_equal(value, before.frozen[name])
            continue
        factor = np.array([0.1, 0.05], np.float32).reshape(2, *[1] * (value.ndim - 1))
        np.testing.assert_allclose(value, start[name] - factor * grads[name], atol=1e-6)


def test_rate_patterns_that_match_nothing_are_errors():
    shapes = {"layers/mlp/up/kernel": (2, 3, 4)}
    with pytest.raises(ValueError, match="matches no parameter; paths look like"):
        optimizer.multipliers(optimizer.Optimizer(rates=("layer/*=0",)), shapes)
    with pytest.raises(ValueError, match="write `pattern=number`"):
        optimizer.multipliers(optimizer.Optimizer(rates=("layers/*",)), shapes)


@pytest.mark.parametrize(
    "schedule,end", [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)]
)
def test_schedules_by_hand(schedule, end):
    settings = optimizer.Optimizer(
        learning_rate=1.0, schedule=schedule, warmup_steps=3, final_share=0.1
    )
    rate = optimizer.learning_rate(settings, 13)
    np.testing.assert_allclose(
        [rate(n) for n in range(4)], [0.25, 0.5, 0.75, 1.0], atol=1e-6
    )
    middle = {"constant": 1.0, "linear": 0.55, "cosine": 0.55}[schedule]
    np.testing.assert_allclose([rate(8), rate(13)], [middle, end], atol=1e-6)


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_parameters(tmp_path):
    model = {"compute_dtype": "bfloat16"}
    rough = train(tiny(model=model), tmp_path / "a")
    exact = train(tiny(), tmp_path / "b")
    assert abs(rough[0]["heldout/logp_chosen"] - exact[0]["heldout/logp_chosen"]) < 0.5
    assert rough[0] != exact[0]
    prepared = prepare(tiny(model=model), tmp_path / "q.jsonl", lambda line: None)
    assert {str(a.dtype) for a in prepared.trainable.values()} == {"float32"}
    half = prepare(tiny(model={"param_dtype": "bfloat16"}), tmp_path / "q.jsonl", print)
    assert {str(a.dtype) for a in half.frozen.values()} == {"bfloat16"}


def test_profile_steps_write_a_trace(tmp_path):
    train(tiny(train={"steps": 2, "profile_steps": "2:2"}), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "tensorboard").glob("events*"))
    with pytest.raises(ValueError, match="write FIRST:LAST, such as 10:13"):
        loop._profiled("3-4")


def test_wandb_is_only_asked_for_behind_its_flag(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        train(tiny(train={"steps": 1, "wandb": True}), tmp_path)


def test_a_run_directory_of_another_config_is_refused(tmp_path):
    run_dir.open_run(tmp_path, tiny())
    run_dir.open_run(
        tmp_path, tiny(train={"tensorboard": False, "steps": 3, "checkpoint_every": 2})
    )
    with pytest.raises(
        ValueError, match=r"belongs to another config.*seed: 0 -> 1.*--run-dir"
    ):
        run_dir.open_run(tmp_path, tiny(seed=1))


def test_a_loss_that_is_not_finite_stops_with_its_records(tmp_path):
    recipe = tiny(6, optimizer={"name": "sgd", "learning_rate": 1e18, "clip_norm": 0.0})
    with pytest.raises(FloatingPointError, match=r"step \d.*not finite.*generated-\d+"):
        train(recipe, tmp_path)
    data = pipeline.StepData(0, (), (), ("a",), 1, 1.0)
    loop.check_finite({"loss": 1.0, "grad_norm": 2.0}, data)


def test_metrics_are_cut_after_the_restored_step(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    run_dir.cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_only_the_newest_checkpoints_stay(tmp_path):
    with checkpoints.manager(tmp_path / "c", 2) as saved:
        for step in (1, 2, 3):
            checkpoints.save(saved, step, {"x": np.full(3, step)})
            checkpoints.wait(saved, step)
        assert checkpoints.latest_step(saved) == 3
        assert sorted(c.step for c in saved.checkpoints) == [2, 3]


def test_base_figures_come_from_the_cache_and_equal_a_pass(tmp_path):
    recipe = tiny()
    prepared = prepare(recipe, tmp_path / "q.jsonl", lambda line: None)
    transformation = optimizer.make(recipe.optimizer, 1, prepared.rates)
    with jax.set_mesh(prepared.mesh):
        parts = compiled.compile_parts(prepared, transformation)
        _, measured = heldout.measure(prepared, parts, prepared.trainable)
    cached = heldout.of_reference(prepared)
    np.testing.assert_allclose(cached.values, measured.values, atol=1e-4)
    np.testing.assert_array_equal(cached.tokens, measured.tokens)
