"""Distillation: values by TRL's own code, whole rows and steps on policy and off it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.algorithms.base import TEACHER, Outputs
from alanything_jax.algorithms.distill import Distill, divergence
from alanything_jax.algorithms.grpo import GRPO
from alanything_jax.hub.source import ModelSource
from alanything_jax.models import heads
from alanything_jax.models.params import flatten
from alanything_jax.sharding import mesh as meshes
from alanything_jax.training import online, step
from tests import toys
from tests.cli.test_cli import CONFIGS
from tests.models.test_stream_logps import GRAMMAR, setting

CHANGE = dataclasses.replace


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def oracle(states, kernels, spans, target, how):
    """TRL's loss, in float64, of what is kept of each row's logits, summed; and its
    gradients by the policy's states and kernel."""
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    states = [torch.tensor(np.asarray(s, np.float64)) for s in states]
    kernels = [torch.tensor(np.asarray(k, np.float64)) for k in kernels]
    leaves = (states[1].requires_grad_(), kernels[1].requires_grad_())
    total = 0.0
    for n, (first, end) in enumerate(spans):
        z = [s[n] @ k[:, first:end] for s, k in zip(states, kernels)]
        logps = [torch.log_softmax(x / how.temperature, -1) for x in z]
        order = torch.argsort(z[0], descending=True)
        kept, rest = order[: how.top or None], order[how.top :] if how.top else []
        shares = [x[kept] for x in logps]
        if len(rest):
            pairs = zip(shares, logps)
            shares = [torch.cat([s, x[rest].logsumexp(0)[None]]) for s, x in pairs]
        # What it makes of logits that are log-probs is those log-probs.
        total = total + gkd.GKDTrainer.generalized_jsd_loss(
            shares[1][None], shares[0][None], beta=how.beta, reduction="sum"
        )
        said = torch.log_softmax(z[1], -1)[target[n] - first]
        total = total - how.nll_weight * said
    total.backward()
    return total.item(), [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize(
    "how, grammar",
    [
        (Distill(0.0, 0, nll_weight=0.2), None),
        slow(Distill(1.0, 0), None),
        slow(Distill(0.3, 0), None),
        slow(Distill(0.0, 5), None),
        (Distill(0.3, 5, temperature=0.7), None),
        slow(Distill(1.0, 5), None),
        # Of images ten codes may stand there, of sounds eight: fewer than are asked for.
        (Distill(1.0, 9, temperature=1.5, nll_weight=0.2), GRAMMAR),
        slow(Distill(0.6, 9), GRAMMAR),
        slow(Distill(0.0, 0), GRAMMAR),
    ],
)
def test_values_and_gradients_are_trls(how, grammar):
    cfg, params, hidden, batch, bounds = setting(False, grammar)
    rng = np.random.default_rng(3)
    # The teacher has another width, and ids behind the policy's.
    theirs = jnp.asarray(rng.normal(size=(*batch.tokens.shape, 20)), jnp.float32)
    wide = jnp.asarray(0.4 * rng.normal(size=(20, cfg.vocab_size + 3)), jnp.float32)
    both = {"chunk": 16, "block": 24}

    @jax.jit
    def total(hidden, kernel):
        tree = {"heads": {"text": {"kernel": wide}}}
        size, spread = cfg.vocab_size, how.temperature
        ids, top = heads.top_logps(
            tree, cfg, theirs, batch, how.top, size, temperature=spread, **both
        )
        tree = {"heads": {"text": {"kernel": kernel}}}
        logps, ours = heads.logps_at(
            tree, cfg, hidden, batch, ids, spread=spread, **both
        )
        outputs = {TEACHER: Outputs(top=top), "policy": Outputs(logps, top=ours)}
        terms, metrics = how.loss(batch, outputs)
        loss = sum(t.weight * t.total for t in terms.values())
        return loss, (logps, metrics)

    kernel = heads.lm_kernel(params, cfg)
    graded = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (loss, (logps, metrics)), grads = graded(hidden, kernel)
    plain = jax.jit(functools.partial(heads.token_logps, params, cfg))
    np.testing.assert_allclose(logps, plain(hidden, batch), atol=1e-5)
    b, t = np.nonzero(np.asarray(batch.scored))
    at = (b, np.asarray(batch.source)[b, t])
    first, end = bounds[0] if grammar else 0 * bounds[1], bounds[1]
    expected, (by_states, by_kernel) = oracle(
        [theirs[at], hidden[at]],
        [wide, kernel],
        list(zip(first[b, t].tolist(), end[b, t].tolist())),
        np.asarray(batch.tokens)[b, t],
        how,
    )
    by_hidden = np.zeros(hidden.shape)
    np.add.at(by_hidden, at, by_states)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads[0], by_hidden, atol=1e-5)
    np.testing.assert_allclose(grads[1], by_kernel, atol=1e-5)
    assert min(np.abs(by_hidden).max(), np.abs(by_kernel).max()) > 1e-2
    kept = metrics["teacher_top"].total / metrics["teacher_top"].count
    assert 0.1 < kept < 0.99 if how.top and not grammar else kept > 0.5


def test_what_is_kept_bounds_the_whole_from_below():
    rng = np.random.default_rng(0)
    cfg, params, hidden, batch, _ = setting(True, None)
    other = jnp.asarray(rng.normal(size=hidden.shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(k):
        ids, top = heads.top_logps(params, cfg, other, batch, k, cfg.vocab_size)
        _, ours = heads.logps_at(params, cfg, hidden, batch, ids)
        return jnp.sum(divergence(top, ours, 0.5), where=batch.scored)

    values = [float(loss(k)) for k in (1, 8, 0, 100)]
    assert 0 < values[0] < values[1] < values[2]
    np.testing.assert_allclose(values[2], values[3], rtol=1e-5)


SMALL = CHANGE(toys.CONFIG, width=16, num_layers=1, num_heads=2)


def grades(batches, teacher=SMALL, mesh=(), rules="fsdp"):
    """Loss and gradients of a step by the program's own parts."""
    program = toys.program(Distill(0.4, 7), rules=rules)
    program = CHANGE(program, reference="live", teacher=teacher)
    trainable = {f"policy/{p}": x for p, x in flatten(toys.parameters()).items()}
    known = toys.parameters(teacher, seed=0 if teacher == toys.CONFIG else 4)
    frozen = {f"teacher/{p}": x for p, x in flatten(known).items()}
    totals = jax.jit(functools.partial(step.totals, program))
    counts = [totals(batch) for batch in batches]
    counts = jax.tree.map(lambda *xs: sum(xs), *counts)

    @jax.jit
    def graded(trainable, batch):
        fixed = step.frozen_outputs(program, frozen | trainable, batch)
        stacked = jax.tree.map(lambda x: x[None], (batch, fixed))
        numbers = program.algorithm.annotate(*stacked)
        numbers = batch.numbers | {name: x[0] for name, x in numbers.items()}
        batch = batch.replace(numbers=numbers)
        return step.gradients(program, trainable, frozen, batch, fixed, counts)

    with jax.set_mesh(meshes.make(mesh)):
        found = [graded(trainable, batch) for batch in batches]
    grads, sums = jax.tree.map(lambda *xs: sum(np.asarray(x) for x in xs), *found)
    return grads, float(sums["loss"].total)


ITEMS = toys.groups(np.random.default_rng(1), 6, gaps=True)
(PACKED,), _ = toys.pack(ITEMS, 2, 96, False, ())
CUT = {"mesh": ("fsdp=2", "sequence=2"), "rules": "sequence"}


@pytest.mark.parametrize("how", ["alone", pytest.param("cut", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_packed_equals_alone_and_rows_cut_along_their_length(how):
    if how == "alone":
        alone = [toys.pack([item], 1, 32, False, ())[0][0] for item in ITEMS]
        other, same = grades(alone)
    else:
        other, same = grades([PACKED], **CUT)
    grads, loss = grades([PACKED])
    assert loss > 0.01 and same == pytest.approx(loss, abs=1e-5)
    for path, grad in grads.items():
        np.testing.assert_allclose(other[path], grad, atol=1e-5)


@pytest.mark.slow
def test_a_policy_that_is_its_teacher_has_nothing_to_learn():
    grads, loss = grades([PACKED], toys.CONFIG)
    assert abs(loss) < 1e-6
    assert max(np.abs(grad).max() for grad in grads.values()) < 1e-6


def recipe(**changed):
    made = recipes.tiny(recipes.load(CONFIGS / "distill_smollm2.py"))
    options = {"steps": 2, "groups_per_step": 2, "tensorboard": False}
    made = CHANGE(made, train=CHANGE(made.train, **options))
    rolled = CHANGE(made.rollout, ptx_groups=1, max_new_tokens=10)
    return CHANGE(made, **({"rollout": rolled} | changed))


def lines(path):
    return [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]


def test_two_steps_on_policy(tmp_path):
    run = online.train(recipe(), tmp_path, str)
    first, second = lines(run.path)
    assert (first["rollout"], second["rollout"]) == (0, 1)
    for line in (first, second):
        assert line["loss"] == line["loss/divergence"] > 0 and line["grad_norm"] > 0
        assert 0 < line["teacher_top"] < 1
    made = np.load(run.rollouts / "000001.npz")
    assert made["rewards"].shape == (2, 1) and not made["rewards"].any()


@pytest.mark.slow
def test_offline_from_a_teacher_that_another_run_exported(tmp_path):
    data = CHANGE(recipe().data, heldout_groups=12)
    train = CHANGE(recipe().train, steps=12, checkpoint_every=12)
    first = alanything_jax.train(
        recipe(rollout=None, data=data, train=CHANGE(train, steps=1)),
        tmp_path / "first",
        str,
    )
    alanything_jax.export(first.path, tmp_path / "teacher")
    source = ModelSource(str(tmp_path / "teacher"))
    made = recipe(rollout=None, data=data, train=train, teacher=source, adapter=None)
    found = lines(
        alanything_jax.train(CHANGE(made, seed=5), tmp_path / "run", str).path
    )
    assert found[-1]["heldout/loss"] < 0.7 * found[0]["heldout/loss"]


def test_a_teacher_of_other_tokens_is_refused(tmp_path):
    other = recipe(teacher=ModelSource("playground:24x1"))
    with pytest.raises(ValueError, match="teacher playground:24x1 has .* ids where"):
        online.train(other, tmp_path, str)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda e: CHANGE(e, teacher=None), "needs teacher=ModelSource"),
        (lambda e: CHANGE(e, reference="cached"), 'and reference="live"'),
        (lambda e: CHANGE(e, algorithm=GRPO()), "it alone"),
        (lambda e: CHANGE(e, algorithm=GRPO(), teacher=None), "rewards is empty"),
        (lambda e: CHANGE(e, algorithm=Distill(beta=1.5)), r"beta must be in \[0, 1\]"),
    ],
)
def test_recipes_that_do_not_fit_say_why(change, words):
    with pytest.raises(ValueError, match=words):
        change(recipe())
