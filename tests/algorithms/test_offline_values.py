"""Offline objectives against TRL's own code, else float64 numpy from the paper's equation.

A step of several microbatches against one batch of the oracle's. The table of oracles and
differences is printed at the end.
"""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax.algorithms import (
    aot,
    bco,
    beta_dpo,
    cost,
    dpo,
    kto,
    process,
    ranking,
    reference_free,
    reward,
    verdict,
)
from alanything_jax.algorithms.base import CURRENT, Outputs
from tests import toys

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
GROUPS = 8


@pytest.fixture(scope="module")
def table(request):
    rows = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\nobjective, oracle: ours, the oracle's, difference")
        for name, oracle, ours, theirs in rows:
            print(
                f"{name:<20} {oracle:<42} {ours:+.6f} {theirs:+.6f} {ours - theirs:+.0e}"
            )


@pytest.fixture
def same(table):
    def check(name, oracle, ours, theirs):
        table.append((name, oracle, float(ours), float(theirs)))
        np.testing.assert_allclose(float(ours), float(theirs), atol=1e-5, rtol=1e-5)

    return check


class Step:
    """Microbatches of random numbers, and the same as lists by group and response."""

    def __init__(self, responses=2):
        rng = np.random.default_rng(7)
        items = toys.groups(rng, GROUPS, responses, gaps=True)
        names = ("margin", "label", "rating")
        packed, _ = toys.pack(items, 2, 48, numbers=names, capacity=GROUPS)
        self.batch = jax.tree.map(lambda *xs: jnp.stack(xs), *packed)
        assert len(packed) > 1
        shape = self.batch.tokens.shape

        def draw(low, high):
            scored = np.asarray(self.batch.scored)
            return np.where(scored, rng.uniform(low, high, shape), 0)

        self.policy, self.reference = draw(-3, -0.1), draw(-3, -0.1)
        self.scores = draw(-2, 2)
        steps = np.asarray(rng.integers(-1, 2, shape), np.float64)
        self.steps = np.where(self.batch.scored, steps, 0)
        self.groups = np.argwhere(np.asarray(self.batch.table)[:, :, 0] >= 0)

    def tokens(self, values):
        """[group][response] -> its scored tokens' values, in order; float64."""
        out = []
        for m, g in self.groups:
            row = []
            for flat in np.asarray(self.batch.table)[m, g]:
                at = np.asarray(self.batch.response)[m] == flat
                order = np.argsort(np.asarray(self.batch.index)[m][at])
                row.append(np.asarray(values, np.float64)[m][at][order])
            out.append(row)
        return out

    def sums(self, values):
        return np.array([[x.sum() for x in row] for row in self.tokens(values)])

    def last(self, values):
        return np.array([[x[-1] for x in row] for row in self.tokens(values)])

    def number(self, name):
        values = np.asarray(self.batch.numbers[name], np.float64)
        return np.array([values[m, g] for m, g in self.groups])

    def ours(self, algorithm, **extra):
        """The step's loss: every term's weight times its mean over all microbatches."""
        logps, fixed, scores = (
            jnp.asarray(x, jnp.float32)
            for x in (self.policy, self.reference, self.scores)
        )
        current = jax.lax.stop_gradient(logps)
        given = {"reference": Outputs(fixed), CURRENT: Outputs(current)}
        (role,) = algorithm.trains
        numbers = self.batch.numbers | extra
        batch = self.batch.replace(numbers=numbers)
        numbers |= algorithm.annotate(batch, given)
        batch, given = (
            batch.replace(numbers=numbers),
            given | {role: Outputs(logps, scores)},
        )
        terms, _ = jax.vmap(algorithm.loss)(batch, given)
        return sum(t.weight[0] * t.total.sum() / t.count.sum() for t in terms.values())

    def padded(self, values):
        """TRL's layout, all chosen and then all rejected: log-probs and their mask."""
        rows = self.tokens(values)
        rows = [row[k] for k in range(2) for row in rows]
        shape = (len(rows), max(map(len, rows)))
        logps, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        for n, row in enumerate(rows):
            logps[n, : len(row)], mask[n, : len(row)] = torch.tensor(row), 1
        return logps, mask


@pytest.fixture(scope="module")
def step():
    return Step()


@pytest.fixture(scope="module")
def ranked():
    return Step(responses=3)


ACCELERATOR = types.SimpleNamespace(
    device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x
)


class Anything(dict):
    """Metrics that nobody reads."""

    def __missing__(self, key):
        return self.setdefault(key, Anything() if key in ("train", "eval") else [])


def trainer(**fields):
    """What TRL's methods need of `self`."""
    return types.SimpleNamespace(
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics=Anything(),
        _total_train_tokens=0,
        _tp_size=1,
        model=types.SimpleNamespace(training=True),
        **fields,
    )


def model(logps):
    """A model whose log-probs are given."""
    zeros = torch.zeros_like(logps)
    said = types.SimpleNamespace(
        log_probs=logps,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros,
    )
    call = types.SimpleNamespace(training=True)
    return type("Model", (), {"__call__": lambda self, **_: said, **vars(call)})()


@contextlib.contextmanager
def bare(monkeypatch, module):
    """No PEFT, no gradient checkpointing."""
    monkeypatch.setattr(module, "is_peft_model", lambda m: False)
    monkeypatch.setattr(
        module, "disable_gradient_checkpointing", lambda *a: contextlib.nullcontext()
    )
    yield


def trl_dpo(step, monkeypatch, losses, policy=None, **options):
    from trl.trainer import dpo_trainer

    (given, mask), (fixed, _) = step.padded(step.policy), step.padded(step.reference)
    policy = given if policy is None else policy
    first = torch.zeros(len(mask), 1, dtype=torch.long)
    mask = torch.cat([first, mask], 1)
    fields = {
        "beta": 0.3,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "loss_types": list(losses),
        "loss_weights": list(losses.values()),
        "ref_model": model(fixed),
        "args": types.SimpleNamespace(
            discopop_tau=0.05, gradient_checkpointing_kwargs=None
        ),
    }
    me = trainer(**(fields | options))
    inputs = {"completion_mask": mask, "input_ids": mask, "attention_mask": mask}
    with bare(monkeypatch, dpo_trainer):
        return dpo_trainer.DPOTrainer._compute_loss(me, model(policy), inputs, False)


MPO = ((0.8, dpo.sigmoid), (0.2, dpo.bco_pair))
LINKS = {
    "sigmoid": ({}, {"sigmoid": 1}, {}),
    "robust": ({"link": dpo.robust, "label_smoothing": 0.1}, {"robust": 1}, {}),
    "hinge": ({"link": dpo.hinge}, {"hinge": 1}, {}),
    "ipo, normalised": ({"link": dpo.ipo, "length_normalised": True}, {"ipo": 1}, {}),
    "exo": ({"link": dpo.exo, "label_smoothing": 0.1}, {"exo_pair": 1}, {}),
    "nca": ({"link": dpo.nca}, {"nca_pair": 1}, {}),
    "bco_pair": ({"link": dpo.bco_pair}, {"bco_pair": 1}, {}),
    "sppo": ({"link": dpo.sppo}, {"sppo_hard": 1}, {}),
    "apo_zero": ({"link": dpo.apo_zero}, {"apo_zero": 1}, {}),
    "apo_down": ({"link": dpo.apo_down}, {"apo_down": 1}, {}),
    "discopop": ({"link": dpo.discopop}, {"discopop": 1}, {}),
    "length-normalised": ({"length_normalised": True}, {"sigmoid_norm": 1}, {}),
    "LD-DPO": ({"tail_discount": 0.4}, {"sigmoid": 1}, {"ld_alpha": 0.6}),
    "WPO, unaligned": (
        {"on_policy_weights": True},
        {"sigmoid": 1},
        {"use_weighting": True},
    ),
    "MPO": (
        {"link": MPO, "nll_weight": 1.0},
        {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1},
        {},
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_dpo(name, step, same, monkeypatch):
    options, losses, theirs = LINKS[name]
    theirs = {"label_smoothing": options.get("label_smoothing", 0.0)} | theirs
    ours = step.ours(dpo.DPO(0.3, **options))
    oracle = f"TRL DPOTrainer {'+'.join(losses)} {theirs if len(theirs) > 1 else ''}"
    same(name, oracle, ours, trl_dpo(step, monkeypatch, losses, **theirs))


@pytest.mark.parametrize("paired", [True, False])
def test_aot(paired, step, same, monkeypatch):
    losses = {"aot" if paired else "aot_unpaired": 1}
    theirs = trl_dpo(step, monkeypatch, losses, label_smoothing=0.1)
    ours = step.ours(aot.AOT(0.3, label_smoothing=0.1, paired=paired))
    same(f"AOT, paired={paired}", f"TRL DPOTrainer {[*losses]}", ours, theirs)


@pytest.mark.parametrize("paired", [True, False])
def test_gradients_of_aot(paired, step, monkeypatch):
    """Partners lie in other microbatches, where the gradient must reach them too."""

    def loss(logps):
        here = Step.__new__(Step)
        here.__dict__ |= vars(step) | {"policy": logps}
        return here.ours(aot.AOT(0.3, paired=paired))

    mine = step.last(jax.grad(loss)(jnp.asarray(step.policy, jnp.float32)))
    policy = step.padded(step.policy)[0].requires_grad_()
    losses = {"aot" if paired else "aot_unpaired": 1}
    trl_dpo(step, monkeypatch, losses, policy).backward()
    # The loss sums a response's log-probs: each of its tokens has the same gradient.
    theirs = policy.grad[:, 0].reshape(2, -1).T.numpy()
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_kto(step, same, monkeypatch):
    from trl.trainer import kto_trainer

    logps, _ = step.padded(step.policy)
    fixed, mask = step.padded(step.reference)
    half, label = len(mask) // 2, torch.tensor(step.number("label")[:, 0])
    me = trainer(
        beta=0.3,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        loss_type="kto",
        calculate_KL=True,
        ref_model=model(fixed[:half]),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    other = {"policy": logps[half:].sum(1), "reference": fixed[half:].sum(1)}
    me._compute_kl_logps = lambda m, batch: other[
        "reference" if m is me.ref_model else "policy"
    ]
    first = torch.zeros(half, 1, dtype=torch.long)
    mask = torch.cat([first, mask[:half]], 1)
    inputs = {"completion_mask": mask, "input_ids": mask, "attention_mask": mask}
    inputs |= {"label": label.bool()}
    assert 0 < label.sum() < half
    algorithm = kto.KTO(0.3, 1.3, 0.7)
    with bare(monkeypatch, kto_trainer):
        for sign in (1, -1):  # a baseline above 0, and one that is cut off there
            other = {n: sign * x for n, x in other.items()}
            kl = other["policy"].mean() - other["reference"].mean()
            here = Step.__new__(Step)
            here.__dict__ |= vars(step)
            table, response = (
                np.asarray(step.batch.table),
                np.asarray(step.batch.response),
            )
            of_two = np.isin(response, table[..., 1]) & (response >= 0)
            here.policy = np.where(of_two, sign * step.policy, step.policy)
            here.reference = np.where(of_two, sign * step.reference, step.reference)
            theirs = kto_trainer.KTOTrainer._compute_loss(
                me, model(logps[:half]), inputs, False
            )
            name = f"KTO, KL {'> 0' if kl > 0 else '< 0'}"
            same(name, "TRL KTOTrainer", here.ours(algorithm), theirs)


def nll(step):
    """Of the chosen answers, per token."""
    chosen = np.concatenate([row[0] for row in step.tokens(step.policy)])
    return -chosen.mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_and_cpo(smoothing, step, same):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    sums = step.sums(step.policy)
    means = sums / step.sums(np.ones_like(step.policy) * np.asarray(step.batch.scored))
    for name, values, options, algorithm, extra in (
        ("simpo", means, {"beta": 2.0, "simpo_gamma": 0.7}, (2.0, 0.7), 0.0),
        ("sigmoid", sums, {"beta": 0.3}, (0.3, 0.0, reference_free.total), 0.0),
    ):
        me = trainer(loss_type=name, alpha=0.0, label_smoothing=smoothing, **options)
        losses, *_ = CPOTrainer.cpo_loss(me, *torch.tensor(values.T))
        ours = step.ours(
            reference_free.ReferenceFree(*algorithm, label_smoothing=smoothing)
        )
        oracle = f"TRL CPOTrainer {name} {smoothing}"
        same("SimPO" if name == "simpo" else "CPO", oracle, ours, losses.mean() + extra)
    if not smoothing:
        ours = step.ours(reference_free.CPO(0.3, 0.5))
        theirs = losses.mean() + 0.5 * nll(step)
        same("CPO, NLL", "TRL CPOTrainer + numpy NLL", ours, theirs)


def test_orpo(step, same):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    ones = np.ones_like(step.policy)
    means = step.sums(step.policy) / step.sums(ones)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.2), *torch.tensor(means.T))
    theirs = nll(step) - losses.mean()
    ours = step.ours(reference_free.ORPO(0.2))
    same("ORPO", "TRL ORPOTrainer + numpy NLL of the answer", ours, theirs)


@pytest.mark.parametrize("margin", [False, True])
def test_reward(margin, step, same):
    from trl.trainer.reward_trainer import RewardTrainer

    scores = torch.tensor(step.last(step.scores).T.reshape(-1, 1))
    args = types.SimpleNamespace(center_rewards_coefficient=0.01)
    said = types.SimpleNamespace(logits=scores)
    inputs = {"attention_mask": torch.ones(1)}
    if margin:
        inputs["margin"] = torch.tensor(step.number("margin"))
    asked = type("Model", (), {"training": True, "__call__": lambda self, **_: said})()
    theirs = RewardTrainer.compute_loss(trainer(args=args), asked, inputs)
    ours = step.ours(reward.Reward(float(margin), 0.01))
    same(f"reward, margin={margin}", "TRL RewardTrainer, centred", ours, theirs)


# From here on TRL has nothing: numpy, float64.


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def of_ratios(step):
    return step.sums(step.policy) - step.sums(step.reference)


def test_ipo_of_sums_as_in_the_paper(step, same):
    h = of_ratios(step) @ [1, -1]
    theirs = ((h - 1 / 0.6) ** 2).mean()
    same("ipo", "numpy, eq. 17", step.ours(dpo.DPO(0.3, dpo.ipo)), theirs)


@pytest.mark.parametrize("link", [dpo.sigmoid, dpo.nca, dpo.sppo])
def test_flipped_labels(link, step, same):
    chosen, rejected = of_ratios(step).T
    one, other = (
        float(link(a, b, 0.3, 0.0).mean())
        for a, b in ((chosen, rejected), (rejected, chosen))
    )
    ours = step.ours(dpo.DPO(0.3, link, 0.1))
    name = f"{link.__name__}, e=0.1"
    same(name, "numpy, cDPO's mixture", ours, 0.9 * one + 0.1 * other)


def test_bco(step, same):
    rewards, good = 0.3 * of_ratios(step), step.number("label") > 0.5
    shift = (rewards[good].mean() + rewards[~good].mean()) / 2
    logit = np.where(good, rewards - shift, shift - rewards)
    theirs = -log_sigmoid(logit).mean()
    same("BCO", "numpy, eq. 9-11", step.ours(bco.BCO(0.3)), theirs)


def test_beta_dpo(step, same):
    h = of_ratios(step) @ [1, -1]
    beta = (1 + 0.6 * ((0.3 * h).mean() - 0.1)) * 0.3
    assert beta > 0.003
    theirs = -log_sigmoid(beta * h).mean()
    ours = step.ours(beta_dpo.BetaDPO(0.3, 0.6, 0.1))
    same("beta-DPO", "numpy, eq. 6-7", ours, theirs)
    assert step.ours(beta_dpo.BetaDPO(0.3, 0.6, 1e3)) == pytest.approx(
        -log_sigmoid(0.003 * h).mean(), abs=1e-5
    )


def test_plackett_luce(ranked, same):
    total, ties = 0.0, False
    for r, rating in zip(
        ranked.last(ranked.scores), ranked.number("rating"), strict=True
    ):
        left = r[np.argsort(-rating)]
        ties |= len(set(rating)) < 3
        while len(left):
            total -= left[0] - np.log(np.exp(left).sum())
            left = left[1:]
    assert not ties
    ours = ranked.ours(ranking.Ranking())
    same("Plackett-Luce, K=3", "numpy, one choice after another", ours, total / GROUPS)


def test_cost(step, same):
    c, safe = step.last(step.scores), step.number("label") > 0.5
    signs = log_sigmoid(np.where(safe, -c, c)).sum(1)
    theirs = -(log_sigmoid(c[:, 1] - c[:, 0]) + signs).mean()
    same("cost (Safe RLHF)", "numpy, eq. 5", step.ours(cost.Cost()), theirs)


def test_process(step, same):
    wanted = jnp.asarray(step.steps, jnp.float32)
    ours = step.ours(process.Process(), step_label=wanted)
    label = np.concatenate([x for row in step.tokens(step.steps) for x in row])
    score = np.concatenate([x for row in step.tokens(step.scores) for x in row])
    right = 1 / (1 + np.exp(-score))
    said = np.where(label > 0, np.log(right), np.log(1 - right))[label != 0]
    same("process reward", "numpy, cross-entropy of steps", ours, -said.mean())


@pytest.mark.parametrize("two_way", [False, True])
def test_verdict(two_way, step, same):
    logps = step.sums(step.policy)
    said = logps[:, 0]
    if two_way:
        said = said - np.log(np.exp(logps).sum(1))
    ours = step.ours(verdict.Verdict(two_way))
    same(f"verdict, two_way={two_way}", "numpy, eq. 4", ours, -said.mean())
