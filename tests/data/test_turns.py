"""Responses of several turns: both are scored, what is observed between them is seen only."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl

from alanything_jax.algorithms import dpo, grpo, ppo, reward
from alanything_jax.algorithms.base import Outputs
from alanything_jax.data import packing
from alanything_jax.data.byte_tokenizer import CHATML, byte_tokenizer
from alanything_jax.data.encode import BadRecord, Limits, encode
from alanything_jax.hub.source import playground_bundle
from alanything_jax.models import decoder, heads
from alanything_jax.playground import oracle
from alanything_jax.schema import Example, Feedback, Message, Part, Response
from tests import toys

PEER = Path(trl.__file__).parent / "chat_templates"
CONFIG = dataclasses.replace(toys.CONFIG, vocab_size=264)
THINK = "<think>\n\n</think>\n\n"


def say(role, said):
    parts = tuple(Part("text", text=s) if isinstance(s, str) else s for s in said)
    return Message(role, parts)


def talk(role, *turns):
    """Turns of the assistant, with messages of `role` between them."""
    roles = ("assistant", role) * len(turns)
    return Response(tuple(say(r, [s]) for r, s in zip(roles, turns, strict=False)))


def example(role="tool", seen="four", prompt="2+2?"):
    both = (
        talk(role, "call", seen, "it is 4"),
        talk(role, "hm", "so?", "5!", "no", "6"),
    )
    return Example("e", (say("user", [prompt]),), both, Feedback(chosen=0))


def tokenizer(name):
    if name == "chatml":
        return byte_tokenizer(CHATML)
    made = byte_tokenizer((PEER / f"{name}.jinja").read_text())
    made.bos_token = "<|endoftext|>"
    return made


def pieces(tok, branch, scored=True):
    """The text of each stretch that is (not) scored."""
    edges = np.flatnonzero(np.diff(np.pad((branch.scored == scored).astype(int), 1)))
    return [
        tok.decode(branch.tokens[a:b])
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


ENDINGS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "qwen3": "<|im_end|>"}


@pytest.mark.parametrize("role", ["user", "tool"])
@pytest.mark.parametrize("name", ENDINGS)
def test_turns_are_scored_and_what_is_observed_is_not(name, role):
    tok, end = tokenizer(name), ENDINGS[name]
    group = encode(example(role), tok, Limits())
    assert "assistant" in tok.decode(group.prompt)[-40:]
    for branch, turns in zip(
        group.branches, (["call", "it is 4"], ["hm", "5!", "6"]), strict=True
    ):
        said = [turn.removeprefix(THINK) for turn in pieces(tok, branch)]
        assert said == [turn + end for turn in turns]
    assert "four" in pieces(tok, group.branches[0], scored=False)[0]


def test_without_a_template_observations_are_unscored_too():
    tok = byte_tokenizer(None)
    group = encode(example(), tok, Limits(chat=False))
    assert [pieces(tok, branch) for branch in group.branches] == [
        ["call", "it is 4<|im_end|>"],
        ["hm", "5!", "6<|im_end|>"],
    ]


def test_a_template_that_refuses_a_role_faults_the_record():
    with pytest.raises(
        BadRecord, match="refuses a conversation of .*'tool'.*alternate"
    ):
        encode(example("tool"), tokenizer("gemma"), Limits())


def test_pictures_of_every_turn_are_scored():
    bundle = playground_bundle("24x1")
    size = bundle.coder.grammar.block("image").total
    drawn = [oracle.part("image", np.full(16, code, np.int32)) for code in (1, 2)]
    turns = (
        say("assistant", [drawn[0]]),
        say("user", ["again"]),
        say("assistant", ["done ", drawn[1]]),
    )
    record = Example("e", (say("user", ["draw"]),), (Response(turns),))
    (branch,) = encode(record, bundle.tokenizer, Limits(), bundle.coder).branches
    spans = np.flatnonzero(np.diff(np.pad(branch.scored.astype(int), 1)))
    # Opener, codes, end of turn; and a word more.
    assert (spans[1::2] - spans[::2]).tolist() == [size + 2, size + 3]
    assert ((branch.stream > 0) & branch.scored).sum() == 2 * size
    (seen,) = pieces(bundle.tokenizer, branch, scored=False)
    assert seen.split() == ["<|user|>", "again", "<|end|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def items():
    tok = byte_tokenizer()
    records = [example(), example("user", "4", "two and two?")]
    reward = np.array([1.0, 0.25], np.float32)
    return [
        dataclasses.replace(encode(r, tok, Limits()), numbers={"reward": reward})
        for r in records
    ]


@pytest.fixture(scope="module")
def score():
    params = toys.parameters(CONFIG)

    @jax.jit
    def logps(batch):
        states = decoder.hidden(params, CONFIG, batch)
        return heads.token_logps(params, CONFIG, states, batch, chunk=64)

    def taken(items, rows, row_tokens):
        batches, planned = toys.pack(items, rows, row_tokens, numbers=())
        out = {}
        for batch, some in zip(batches, planned, strict=True):
            out |= packing.take(items, some, np.asarray(logps(batch)))
        return out

    return taken


def test_packed_equals_alone(items, score):
    together = score(items, 1, 512)
    for n, group in enumerate(items):
        for b, branch in enumerate(group.branches):
            alone = dataclasses.replace(group, branches=(branch,), numbers={})
            (single,) = score([alone], 1, 256).values()
            np.testing.assert_allclose(together[n, b], single, atol=1e-5)
            assert (single[~branch.scored] == 0).all()
            assert (single[branch.scored] < 0).all()


def test_what_is_observed_is_seen(score):
    """Another observation changes what follows it, and nothing before it."""
    tok = byte_tokenizer()
    four, five = (
        encode(dataclasses.replace(r, responses=r.responses[:1]), tok, Limits())
        for r in (example(seen="four"), example(seen="five"))
    )
    (a,), (b,) = (list(score([g], 1, 256).values()) for g in (four, five))
    first = len("call") + 1
    np.testing.assert_allclose(a[:first], b[:first], atol=1e-6)
    last = np.flatnonzero(four.branches[0].scored)[first:]
    assert np.abs(a[last] - b[last]).max() > 1e-3


@pytest.fixture(scope="module")
def packed(items):
    """A batch, random numbers of its tokens, and each response's as a list of those that
    are scored, by group and branch."""
    (batch,), (rows,) = toys.pack(items, 2, 400, numbers=("reward",))
    rng = np.random.default_rng(0)
    names = ("policy", "old", "reference", "values")
    every = {n: rng.normal(-1, 0.3, batch.tokens.shape).astype("f") for n in names}
    order = dict.fromkeys(piece.group for row in rows for piece in row)
    lists = {
        name: [
            [
                packing.take(items, rows, values)[g, b][items[g].branches[b].scored]
                for b in range(2)
            ]
            for g in order
        ]
        for name, values in every.items()
    }
    return batch, {n: jnp.asarray(v) for n, v in every.items()}, lists


def of(terms, name):
    return float(terms[name].total / terms[name].count)


def with_step(algorithm, batch, outputs):
    """The loss with what `annotate` says of a step of one microbatch."""
    stacked = jax.tree.map(lambda x: x[None], (batch, outputs))
    more = algorithm.annotate(*stacked)
    return algorithm.loss(
        batch.replace(numbers=batch.numbers | {n: v[0] for n, v in more.items()}),
        outputs,
    )[0]


def test_dpo_sums_over_all_turns(packed):
    batch, every, lists = packed
    outputs = {n: Outputs(logps=every[n]) for n in ("policy", "reference")}
    losses = []
    for ours, theirs in zip(lists["policy"], lists["reference"], strict=True):
        gap = [np.sum(p) - np.sum(r) for p, r in zip(ours, theirs, strict=True)]
        losses.append(np.log1p(np.exp(-0.1 * (gap[0] - gap[1]))))
    terms = with_step(dpo.DPO(0.1), batch, outputs)
    np.testing.assert_allclose(of(terms, "dpo"), np.mean(losses), rtol=1e-5)


def test_reward_is_read_at_the_last_scored_token(packed):
    batch, every, lists = packed
    terms = reward.Reward().loss(batch, {"reward": Outputs(scores=every["values"])})[0]
    gaps = [good[-1] - bad[-1] for good, bad in lists["values"]]
    wanted = np.mean(np.log1p(np.exp(-np.array(gaps))))
    np.testing.assert_allclose(of(terms, "bradley_terry"), wanted, rtol=1e-5)


def test_grpo_weighs_the_scored_tokens_of_all_turns(packed):
    batch, every, lists = packed
    outputs = {n: Outputs(logps=every[n]) for n in ("policy", "old")}
    outputs["sampler"] = outputs["old"]
    gains = np.array([1.0, 0.25]) - 0.625
    gains = gains / (np.std([1.0, 0.25], ddof=1) + 1e-4)
    losses = []
    for ours, old in zip(lists["policy"], lists["old"], strict=True):
        for p, o, gain in zip(ours, old, gains, strict=True):
            ratio = np.exp(p - o)
            least = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
            losses.append(-least.mean())
    terms = with_step(grpo.GRPO(), batch, outputs)
    np.testing.assert_allclose(of(terms, "policy"), np.mean(losses), rtol=1e-4)


def test_ppo_runs_its_advantages_over_scored_tokens_alone(packed, items):
    """A turn's last token is followed by the next turn's first, not by an observation."""
    batch, every, lists = packed
    algorithm = ppo.PPO(kl_weight=0.1, discount=0.9, trace=0.8)
    outputs = {n: Outputs(logps=every[n]) for n in ("policy", "old", "reference")}
    outputs["old_value"] = Outputs(scores=every["values"])
    stacked = jax.tree.map(lambda x: x[None], (batch, outputs))
    returns = np.asarray(algorithm.annotate(*stacked)["returns"][0])
    (_,), (rows,) = toys.pack(items, 2, 400, numbers=("reward",))
    found = packing.take(items, rows, returns)
    order = list(dict.fromkeys(piece.group for row in rows for piece in row))
    for g, b in np.ndindex(2, 2):
        old, fixed, values = (lists[n][g][b] for n in ("old", "reference", "values"))
        rewards = -0.1 * (old - fixed)
        rewards[-1] += [1.0, 0.25][b]
        wanted, later = np.zeros_like(values), 0.0
        for t in reversed(range(len(values))):
            ahead = values[t + 1] if t + 1 < len(values) else 0.0
            later = rewards[t] + 0.9 * ahead - values[t] + 0.9 * 0.8 * later
            wanted[t] = later + values[t]
        branch = items[order[g]].branches[b]
        np.testing.assert_allclose(found[order[g], b][branch.scored], wanted, atol=1e-5)
