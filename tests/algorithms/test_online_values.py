"""Online objectives and `ops.policy` against TRL's code, else float64 from the paper.

A step of several microbatches against lists of responses: loss, and gradients to all
numbers of all trained roles. A printed table names the oracles. Where they differ:

    std          DeepSeekMath divides by std alone; TRL and ours add 1e-4, and take n - 1
    no reward    TRL has such responses (advantage 0, and KL) in its means; ours has not
    no token     TRL has such responses in its means; ours in RLOO's (as 0), not in GRPO's
    DAPO's mean  the paper's: of a prompt, then of prompts; TRL's and ours: of the step
"""

import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax.algorithms import grpo, ppo, reinforce, rloo
from alanything_jax.algorithms.base import Outputs
from alanything_jax.algorithms.ppo_lagrangian import PPOLagrangian
from alanything_jax.ops import policy
from tests import toys

torch, trl = pytest.importorskip("torch"), pytest.importorskip("trl")
K, NAN, NUMBERS = 4, float("nan"), ("reward", "cost", "ptx", "multiplier")
GROUPS = (  # tokens of the prompt and of each response; rewards
    (3, (4, 7, 2, 9), (0.9, -1.3, 0.4, 2.1)),
    (4, (3, 5, 6, 1), (1.0, 1.0, 1.0, 1.0)),  # all equal
    (5, (6, 3, 8, 4), (0.3, NAN, -0.7, 1.1)),
    (2, (5, 2, 7, 3), (0.5, -0.6, 3.0, 0.1)),  # the third has no scored token
    (6, (20, 18, 9, 15), (-0.2, 0.8, 1.7, -1.1)),  # too long for one row of 32
    (3, (3, 4, 2, 5), (NAN, NAN, 0.6, NAN)),  # one reward alone
    (4, (6,), (NAN,) * K),  # only imitated
)
REWARDS = np.array([rewards for *_, rewards in GROUPS])
COSTS = np.cos(np.arange(REWARDS.size) * 0.9).reshape(-1, K)
COSTS[0, 3] = NAN


@pytest.fixture(scope="module")
def same(request):
    rows = []

    def check(name, oracle, step, algorithm, loss, leaves):
        loss.backward()
        (ours, _), grads = run(algorithm, step.batch, step.values)
        wanted = {r: leaves[r].grad.numpy().reshape(grads[r].shape) for r in grads}
        far = max(np.abs(grads[r] - wanted[r]).max() for r in grads)
        rows.append((name, oracle, ours, loss.item(), far))
        np.testing.assert_allclose(ours, loss.item(), atol=1e-5, rtol=1e-5)
        for role, mine in grads.items():
            assert np.abs(wanted[role]).max() > 1e-3
            np.testing.assert_allclose(mine, wanted[role], atol=1e-5, rtol=1e-5)

    yield check
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\nobjective, oracle: ours, the oracle's, difference, the gradients'")
        for name, oracle, ours, theirs, far in rows:
            print(f"{name:<26} {oracle:<24} {ours:+.6f} {theirs:+.6f}", end=" ")
            print(f"{ours - theirs:+.0e} {far:.0e}")


class Step:
    """Microbatches; `places` [group][response] of scored tokens in the flattened [M, B, T],
    and `foreseen`, of what predicts them. Unscored places hold numbers as well."""

    def __init__(self, rows, row_tokens, couples=False):
        rng, items = np.random.default_rng(7), []
        for g, (prompt, sizes, rewards) in enumerate(GROUPS):
            item = toys.group(rng, g, prompt, sizes, gaps=True)
            known = (rewards, COSTS[g], len(sizes) == 1, 0.7)
            item.numbers.update(zip(NUMBERS, map(np.float32, known), strict=True))
            items.append(item)
        items[3].branches[2].scored[:] = False
        packed, self.planned = toys.pack(items, rows, row_tokens, couples, NUMBERS)
        self.batch = jax.tree.map(lambda *xs: jnp.stack(xs), *packed)
        tokens, index = np.asarray(self.batch.tokens), np.asarray(self.batch.index)
        self.places = [[np.zeros(0, int)] * K for _ in items]
        self.foreseen = np.zeros(tokens.size, int)
        for m, some in enumerate(self.planned):
            for r, row in enumerate(some):
                at = (m * rows + r) * row_tokens
                for piece in row:
                    item, at = items[piece.group], at + len(items[piece.group].prompt)
                    prompt_end = at - 1
                    for k in piece.branches:
                        own = at + np.flatnonzero(item.branches[k].scored)
                        self.places[piece.group][k] = own
                        self.foreseen[own] = np.where(own == at, prompt_end, own - 1)
                        at += len(item.branches[k].tokens)

        def draw(seed, low, high):
            known = np.random.default_rng(seed).uniform(low, high, (61, 64))
            return known[tokens, index].astype(np.float32)

        old, seen = draw(1, -3, -0.5), self.foreseen.reshape(tokens.shape)
        self.values = {"old": old, "reference": draw(2, -3, -0.1)}
        self.values["policy"] = old + draw(3, -0.3, 0.3)
        self.values["sampler"] = old + draw(4, -0.4, 0.4)
        for n, role in ((5, "value"), (6, "cost_value")):
            self.values[f"old_{role}"] = draw(n, -1, 1).reshape(-1)[seen]
            self.values[role] = draw(n, -1, 1) + draw(n + 2, -0.5, 0.5)

    def flat(self, role):
        return self.values[role].reshape(-1).astype(np.float64)

    def leaves(self):
        return {r: torch.tensor(self.flat(r), requires_grad=True) for r in self.values}

    def learnt(self, *numbers):
        """(places, number of each kind) of responses that have tokens and all numbers."""
        cells = np.ndindex(len(GROUPS), K)
        rows = [(self.places[g][k], *(x[g, k] for x in numbers)) for g, k in cells]
        return [row for row in rows if len(row[0]) and not np.isnan(row[1:]).any()]


@functools.partial(jax.jit, static_argnums=0)
def run(algorithm, batch, values):
    def outputs(roles, values):
        return {r: Outputs(**{algorithm.roles[r]: values[r]}) for r in roles}

    def loss(trained):
        given = outputs(set(algorithm.roles) - set(algorithm.trains), values)
        here = batch.replace(numbers=batch.numbers | algorithm.annotate(batch, given))
        given |= outputs(algorithm.trains, trained)
        terms, _ = jax.vmap(algorithm.loss)(here, given)
        shares = (t.weight[0] * t.total.sum() / t.count.sum() for t in terms.values())
        return sum(shares), terms

    trained = {role: values[role] for role in algorithm.trains}
    return jax.value_and_grad(loss, has_aux=True)(trained)


@functools.cache
def several(couples=False):
    """The step in several microbatches; a long group's responses are in two of them."""
    step = Step(2, 64 if couples else 32, couples)
    has = [{p.group for row in rows for p in row} for rows in step.planned]
    assert sum(4 in groups for groups in has) == 1 + (not couples) and len(has) > 1
    return step


class Stub(types.SimpleNamespace):
    """What TRL's methods need of `self` and its parts: most options are off."""

    name, training, device, pad_token_id, process_index = "old", True, "cpu", 0, 0
    num_iterations = steps_per_generation = gradient_accumulation_steps = 1
    num_processes = current_gradient_accumulation_steps = top_entropy_quantile = 1
    multi_objective_aggregation, num_generations = "sum_then_normalize", K
    reward_func_names, reward_weights = ("reward",), torch.ones(1)
    gather = reduce = staticmethod(lambda x, **_: x)
    _metrics = _logs = mock.MagicMock()

    def __getattr__(self, name):
        return {} if name.startswith("_pending") else None


def of_trl(kind, step, algorithm, more=(None, [""], None, {}, None, None), **options):
    """TRL's advantages, and then its loss over the responses that can be learnt."""
    leaves, rows = step.leaves(), [row for group in step.places for row in group]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    wide = {name: pad([leaf[row] for row in rows]) for name, leaf in leaves.items()}
    options |= {"epsilon_low": algorithm.clip_low, "epsilon_high": algorithm.clip_high}
    me = Stub(ref_model=Stub(name="reference"), beta=algorithm.kl_weight, **options)
    me.accelerator = me.args = me.model = me._tokenizer = me
    me._generate = lambda _: ([[1]] * len(rows), [[1] * len(r) for r in rows], *more)
    me._calculate_rewards = lambda *_: torch.tensor(REWARDS).reshape(-1, 1)
    me._get_per_token_logps_and_entropies = lambda m, *_, **__: (wide[m.name],) * 3
    inputs = kind._generate_and_score_completions(me, [{"prompt": ""}] * len(rows))
    kept = [n for n, r in enumerate(rows) if len(r) and np.isfinite(REWARDS.flat[n])]
    inputs = {n: x[kept] if x.ndim else x for n, x in inputs.items()}
    wide = {name: x[kept] for name, x in wide.items()}
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    inputs["old_per_token_logps"] = wide["old"].detach()
    weight = (wide["old"] - wide["sampler"]).exp().clamp(max=algorithm.sampler_most)
    inputs["importance_sampling_ratio"] = weight.detach()
    if kind is trl.RLOOTrainer:  # it has no such weight, which scales a response's loss
        shares = inputs["completion_mask"] / inputs["completion_mask"].sum(1, True)
        inputs["advantages"] = inputs["advantages"] * (weight * shares).sum(1)
    me.name, me.use_vllm, me.vllm_importance_sampling_correction = "policy", True, True
    return kind._compute_loss(me, me, inputs), leaves


GSPO = {"importance": "response", "clip_low": 0.02, "clip_high": 0.03}
VARIANTS = {
    "GRPO": {"sampler_most": 1.2},
    "GRPO, KL": {"kl_weight": 0.1},
    "GRPO, step's std": {"scale": "step"},
    "GRPO, dual clip": {"ratio_most": 1.25},
    "DAPO, KL": {"average": "token", "kl_weight": 0.1, "clip_high": 0.28},
    "Dr.GRPO": {"average": "constant", "scale": "none", "max_tokens": 9},
    "GSPO": GSPO,
    "GSPO, mean of tokens, KL": GSPO | {"average": "token", "kl_weight": 0.1},
}
LOSSES = {"response": "grpo", "token": "dapo", "constant": "dr_grpo"}


@pytest.mark.parametrize("name", VARIANTS)
def test_grpo(name, same):
    me = grpo.GRPO(**({"clip_low": 0.1} | VARIANTS[name]))
    kind, scale = LOSSES[me.average], me.scale.replace("step", "batch")
    options = {"max_completion_length": me.max_tokens, "loss_type": kind}
    options |= {"delta": me.ratio_most, "scale_rewards": scale}
    options["importance_sampling_level"] = me.importance.replace("response", "sequence")
    loss = of_trl(trl.GRPOTrainer, several(), me, **options)
    same(name, f"TRL GRPOTrainer {kind}", several(), me, *loss)


@pytest.mark.parametrize("kl_weight", [0.0, 0.05])
def test_rloo(kl_weight, same):
    step, me = several(couples=True), rloo.RLOO(kl_weight, 0.3, 0.4, 1.2)
    loss, leaves = of_trl(trl.RLOOTrainer, step, me, ([""],))
    count = len(step.learnt(REWARDS))
    loss = loss * count / (count + 1)  # one is without a token, and its term 0
    same(f"RLOO, KL {kl_weight}", "TRL RLOOTrainer", step, me, loss, leaves)


def traced(rewards, values, discount, trace):
    """arXiv:1506.02438, equation 16: sums over all later temporal differences."""
    deltas = rewards + discount * np.append(values[1:], 0.0) - values
    decay, steps = discount * trace, range(len(values))
    gains = [sum(decay ** (n - t) * deltas[n] for n in steps[t:]) for t in steps]
    return np.array(gains)


def gained(step, learnt, n, kl_weight, role=None, discount=1.0, trace=1.0):
    """Per response the advantages of its tokens: number n of it at the end, and KL."""
    out, old = [], step.flat(f"old_{role}") if role else np.zeros(step.foreseen.size)
    for row in learnt:
        at = row[0]
        rewards = -kl_weight * (step.flat("old")[at] - step.flat("reference")[at])
        rewards[-1] += row[n]
        out.append(traced(rewards, old[at], discount, trace))
    return out


def averaged(losses, me):
    alike = {"token": sum(map(len, losses)) / len(losses), "constant": me.max_tokens}
    sums = [x.sum() / alike.get(me.average, len(x)) for x in losses]
    return sum(sums) / len(losses)


def clipped(step, leaves, learnt, gains, me):
    """Clipped loss of whitened advantages, times the sampler's truncated weight."""
    every, losses = np.concatenate(gains), []
    for (at, *_), gain in zip(learnt, gains, strict=True):
        advantage = torch.tensor((gain - every.mean()) / every.std(ddof=1))
        old, by = (torch.tensor(step.flat(r)[at]) for r in ("old", "sampler"))
        ratio = (leaves["policy"][at] - old).exp()
        held = ratio.clamp(1 - me.clip_low, 1 + me.clip_high)
        surrogate = torch.minimum(ratio * advantage, held * advantage)
        losses.append(-(old - by).exp().clamp(max=me.sampler_most) * surrogate)
    return averaged(losses, me)


def missed(step, leaves, learnt, gains, role, clip=0.2):
    """The value loss; V is read where each token is predicted."""
    losses = []
    for (at, *_), gain in zip(learnt, gains, strict=True):
        old = torch.tensor(step.flat(f"old_{role}")[at])
        value, wanted = leaves[role][step.foreseen[at]], torch.tensor(gain) + old
        near = old + (value - old).clamp(-clip, clip)
        losses.append(torch.maximum((value - wanted) ** 2, (near - wanted) ** 2) / 2)
    return torch.cat(losses).mean()


PPO, PLAIN = ppo.PPO, functools.partial(reinforce.Reinforce, 0.3, 0.1, 0.2)
EQUATIONS = {f"REINFORCE++, {how}": PLAIN(how, 9, 1.2) for how in LOSSES} | {
    "PPO": PPO(),
    "PPO, KL in the loss, ptx": PPO(kl_in="loss", ptx_weight=0.6, average="response"),
    "PPO, discounted": PPO(discount=0.9, trace=0.8, kl_weight=0.0, value_clip=0.1),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations(name, same):
    me, step, learnt = EQUATIONS[name], several(), several().learnt(REWARDS)
    leaves, inside = step.leaves(), "loss" not in name
    how = ("value", me.discount, me.trace) if "PPO" in name else ()
    gains = gained(step, learnt, 1, me.kl_weight * inside, *how)
    loss = clipped(step, leaves, learnt, gains, me)
    if how:
        loss = loss + 0.5 * missed(step, leaves, learnt, gains, "value", me.value_clip)
    if not inside:
        fixed, mine = step.leaves()["reference"], leaves["policy"]
        gaps = [fixed[at] - mine[at] for at, _ in learnt]
        loss = loss + me.kl_weight * averaged([x.exp() - 1 - x for x in gaps], me)
        loss = loss - me.ptx_weight * mine[step.places[-1][0]].mean()
    same(name, "float64", step, me, loss, leaves)


def test_ppo_lagrangian(same):
    """The authors' code mixes advantages, as here; their paper mixes the clipped losses."""
    given = several(), several().leaves(), several().learnt(REWARDS, COSTS)
    good = gained(given[0], given[2], 1, 0.025, "value", trace=0.95)
    bad = gained(given[0], given[2], 2, -0.025, "cost_value", trace=0.95)
    mixed = [(r - 0.7 * c) / 1.7 for r, c in zip(good, bad, strict=True)]
    loss = clipped(*given, mixed, PPO()) + 0.5 * missed(*given, good, "value")
    loss, me = loss + 0.5 * missed(*given, bad, "cost_value"), PPOLagrangian()
    same("PPO-Lagrangian", "float64", given[0], me, loss, given[1])


def test_multiplier():
    """Safe RLHF's equation 31, as in its code: ln m + rate * m * (cost - limit)."""
    me = PPOLagrangian(cost_limit=-0.5, multiplier_rate=0.1, multiplier_most=3.0)
    cases = (1.0, 0.3), (2.0, 1e3), (2.0, 0.3)
    found = [me.next_multiplier(*case) for case in cases]
    np.testing.assert_allclose(found, [np.exp(0.08), 3.0, 2 * np.exp(0.16)])


def test_moments_leave_one_out_and_whiten():
    rewards = [(1.0, 2.0, 6.0, NAN), (5.0, *[NAN] * 3), (2.0,) * 4, (NAN,) * 4]
    gaps = [(-3.0, -1.5, 4.5, NAN), (0.0, *[NAN] * 3), (0.0,) * 4, (NAN,) * 4]
    np.testing.assert_allclose(policy.leave_one_out(jnp.array(rewards)), gaps, 1e-6)
    wanted = [(3, 1, 4, 0), (3, 5, 2, 0), (7**0.5, 0, 0, 0)]
    got = [x[:, 0] for x in policy.group_moments(jnp.array(rewards))]
    np.testing.assert_allclose(got, wanted, 1e-6)
    values, mask = np.array([3.0, NAN, -1.0, 1e9, 2.5]), np.array([1, 0, 1, 0, 1], bool)
    wanted = np.where(mask, (values - 1.5) / np.sqrt(9.5 / 2), 0.0)
    np.testing.assert_allclose(policy.whiten(values, jnp.asarray(mask)), wanted, 1e-5)
    for few in (np.zeros(5, bool), np.arange(5) == 2):
        np.testing.assert_array_equal(policy.whiten(values, jnp.asarray(few)), 0)


def test_backwards_last_and_before():
    def all_three(rewards, values, batch):
        discounted = policy.backwards(rewards, values, batch, 0.9, 0.7)
        return discounted, policy.is_last(batch), policy.before(values, batch)

    step, names = several(), ("reference", "cost_value")
    wanted, (rewards, values) = np.zeros((3, step.foreseen.size)), map(step.flat, names)
    for (at,) in step.learnt():
        wanted[0, at] = traced(rewards[at], values[at], 0.9, 0.7)
        wanted[1, at[-1]], wanted[2, at] = 1, values[step.foreseen[at]]
    assert any(np.diff(at).max(initial=1) > 1 for (at,) in step.learnt()), "no gaps"
    found = jax.jit(jax.vmap(all_three))(*(step.values[n] for n in names), step.batch)
    np.testing.assert_allclose([x.reshape(-1) for x in found], wanted, atol=1e-5)


@pytest.mark.parametrize("couples", [True, False])
def test_siblings_and_lengths_by_hand(couples):
    """align-anything's RLOO has neighbouring tokens for siblings, `reshape(-1, n)` of a
    matrix of tokens, and its means divide by the padded length."""
    made = rloo.RLOO(0.0) if couples else grpo.GRPO(scale="none")
    step = several(couples)
    values = step.values | dict.fromkeys(("policy", "sampler"), step.values["old"])
    grads = run(made, step.batch, values)[1]["policy"].reshape(-1)
    count = len(step.learnt(REWARDS))
    for at, gap in zip(step.places[0], (0.375, -1.825, -0.125, 1.575), strict=True):
        wanted = gap * 4 / 3 / (count + 1) if couples else gap / count / len(at)
        np.testing.assert_allclose(grads[at], -wanted, atol=1e-6)


ALL = grpo.GRPO(), rloo.RLOO(), PPO(), PPOLagrangian(), PLAIN("response")
every = pytest.mark.parametrize("algorithm", ALL, ids=lambda x: type(x).__name__)


@every
def test_first_and_certain_tokens_learn_and_the_silent_do_not(algorithm):
    """align-anything's windows drop the first tokens, and its mask `log_probs != 0` those
    of probability 1. Silent are equal rewards, one alone, and none."""
    step = several(algorithm.couples)
    old = step.values["old"].copy()
    old.reshape(-1)[[row[0][0] for row in step.learnt()]] = 0.0
    values = step.values | dict.fromkeys(("policy", "sampler", "old", "reference"), old)
    grads = run(algorithm, step.batch, values)[1]["policy"].reshape(-1)
    needed = REWARDS + COSTS if "cost" in algorithm.numbers else REWARDS
    for (g, k), number in np.ndenumerate(needed):
        silent = np.isnan(number) or g in (1, 5) and algorithm.min_responses > 1
        mine = np.abs(grads[step.places[g][k]])
        assert not mine.any() if silent else (mine > 1e-6).all()


def test_rewards_stand_at_last_tokens_not_at_pads():
    """align-anything's heads read position -1 of padded rows; of values see gradients."""
    step, made = several(), PPO(discount=0.5, trace=1.0, kl_weight=0.0)
    zeros = {"old_value": Outputs(scores=jnp.zeros(step.batch.tokens.shape))}
    found = jax.jit(made.annotate)(step.batch, zeros)["returns"]
    wanted = np.zeros(found.size)
    for at, reward in step.learnt(REWARDS):
        wanted[at] = reward * 0.5 ** np.arange(len(at))[::-1]
    np.testing.assert_allclose(found.reshape(-1), wanted, atol=1e-6)


@every
def test_microbatches_are_no_mean_of_means(algorithm):
    """maxtext#3040, TRL's BNPO and align-anything average the microbatches' means."""
    many, one = several(algorithm.couples), Step(8, 96)
    (loss, terms), grads = run(algorithm, many.batch, many.values)
    (other, _), big = run(algorithm, one.batch, one.values)
    np.testing.assert_allclose(loss, other, atol=1e-5)
    for a, b in zip(many.learnt(), one.learnt(), strict=True):
        mine, wanted = (x["policy"].reshape(-1) for x in (grads, big))
        np.testing.assert_allclose(mine[a[0]], wanted[b[0]], atol=1e-5)
    means = [t.weight[0] * np.mean(t.total / t.count) for t in terms.values()]
    assert abs(sum(means) - loss) > 1e-3
