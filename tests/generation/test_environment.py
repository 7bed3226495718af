"""Rollouts of several turns: tokens by hand, log-probs as the trainer computes them."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data import packing
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.data.prompts import Prompt
from alanything_jax.data.soft import Placement
from alanything_jax.data.template import render, render_prompt
from alanything_jax.generation.decode import Completion, generate_tokens
from alanything_jax.generation.environment import rollout_turns
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import playground_bundle, tiny_bundle
from alanything_jax.playground import environments, oracle, tasks
from alanything_jax.schema import Example, Response
from alanything_jax.training.prepare import media_plans
from alanything_jax.training.step import Compute
from tests.data.test_turns import say, tokenizer
from tests.models.test_media_rows import examples, logps

TOK = byte_tokenizer()


def prompt(tok, coder=None, parts=("guess!",), opener=(), **record):
    messages = (say("user", parts),)
    tokens, soft = render_prompt(tok, messages, coder)
    tokens = np.append(tokens, opener).astype(np.int32)
    return Prompt(messages, EncodedGroup("p", tokens, (), prompt_soft=soft), record)


class Scripted:
    """A policy that says what is written down, turn by turn, for each prompt."""

    def __init__(self, tok, end, *scripts):
        self.tok, self.end, self.scripts = tok, end, [list(s) for s in scripts]
        self.asked = []

    def __call__(self, groups, samples, seed):
        self.asked.append([len(group.prompt) for group in groups])
        out = []
        for script in [s for s in self.scripts if s][: len(groups) * samples]:
            said = script.pop(0)
            finished = not said.endswith("...")
            ids = self.tok(said + self.end * finished, add_special_tokens=False)
            tokens = np.array(ids["input_ids"], np.int32)
            out.append(Completion(tokens, -np.arange(1.0, len(tokens) + 1), finished))
        return out


def played(scripts, numbers, tok=TOK, end="<|im_end|>", **options):
    policy = Scripted(tok, end, *scripts)
    options = {"max_turns": 4, "max_tokens": 400, "max_new_tokens": 20} | options
    environment = options.pop("environment", environments.Guess())
    prompts = [prompt(tok, number=n) for n in numbers]
    return policy, prompts, rollout_turns(policy, environment, prompts, tok, **options)


ENDINGS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "qwen2_5": "<|im_end|>",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_branch_is_the_conversation_as_the_template_renders_it(name):
    tok, end = tokenizer(name), ENDINGS[name]
    tok.add_special_tokens({"additional_special_tokens": [end]})
    _, (start,), (branch,) = played([["50", "2", "is it 37?"]], [37], tok, end)
    assert [(m.role, m.text) for m in branch.messages] == [
        ("assistant", "50"),
        ("user", "lower"),
        ("assistant", "2"),
        ("user", "higher"),
        ("assistant", "is it 37?"),
    ]
    whole = render(tok, (*start.messages, *branch.messages))
    tokens = np.concatenate([start.group.prompt, branch.tokens])
    assert tokens.tolist() == whole.tokens[: len(tokens)].tolist()
    assert branch.scored.tolist() == (
        whole.scored[len(start.group.prompt) : len(tokens)].tolist()
    )
    assert (branch.logps[~branch.scored] == 0).all()
    own = [len(tok(text + end)["input_ids"]) for text in ("50", "2", "is it 37?")]
    wanted = np.concatenate([-np.arange(1.0, size + 1) for size in own])
    assert branch.logps[branch.scored].tolist() == wanted.tolist()
    assert (
        branch.finished and branch.turns == 3 and branch.reward == pytest.approx(1 / 3)
    )


def test_a_template_that_rewrites_earlier_turns_leaves_them_as_sampled():
    """Qwen3 drops the thoughts of earlier turns; the branch keeps what was said."""
    tok, end = tokenizer("qwen3"), "<|im_end|>"
    thought = "<think>\nlow\n</think>\n\n50"
    _, _, (branch,) = played([[thought, "37"]], [37], tok, max_new_tokens=40)
    header = "<|im_start|>assistant\n"
    assert tok.decode(branch.tokens) == (
        f"{thought}{end}\n<|im_start|>user\nlower{end}\n{header}37{end}"
    )
    assert tok.decode(branch.tokens[branch.scored]) == f"{thought}{end}37{end}"


def test_what_is_over_is_asked_no_more():
    scripts = [["37"], ["1", "2", "3", "4"], ["no idea...", "37"], ["50", "37"]]
    policy, _, branches = played(scripts, [37] * 4, max_turns=3)
    # Two go on behind the first turn (one is done, one was cut off), then one.
    assert [len(asked) for asked in policy.asked] == [4, 2, 1]
    done, slow, cut, good = branches
    assert (done.turns, done.reward, done.finished) == (1, 1.0, True)
    # `max_turns`: its last words are the policy's own.
    assert (slow.turns, slow.reward, slow.finished) == (3, 0.0, False)
    assert slow.scored[-1] and [m.text for m in slow.messages[::2]] == ["1", "2", "3"]
    assert (cut.turns, cut.reward, cut.finished) == (1, 0.0, False)
    assert (good.turns, good.reward, good.finished) == (2, 0.5, True)
    assert not any(branch.error for branch in branches)


def test_no_turn_begins_without_room_for_it():
    _, _, (roomy,) = played([["50", "2", "37"]], [37], max_tokens=150)
    assert roomy.turns == 3
    size = len(roomy.tokens) - len("37") - 1
    _, _, (tight,) = played([["50", "2", "37"]], [37], max_tokens=size + 19)
    assert tight.turns == 2 and not tight.finished and tight.scored[-1]
    _, _, (fits,) = played([["50", "2", "37"]], [37], max_tokens=size + 20)
    assert fits.turns == 3 and fits.finished
    with pytest.raises(ValueError, match="room for its 20 tokens"):
        played([["50"]], [37], max_tokens=19)


@dataclasses.dataclass(frozen=True)
class Broken:
    """Fails where a guess is 2; has no good reward for 3."""

    inner: environments.Guess = environments.Guess()

    def reset(self, prompt, record):
        return self.inner.reset(prompt, record)

    def step(self, state, said):
        if said.text == "2":
            raise ConnectionError("the world is away")
        state, seen, reward = self.inner.step(state, said)
        return state, seen, float("inf") if said.text == "3" else reward


def test_an_environment_that_fails_marks_its_branch_alone():
    scripts = [["1", "2"], ["37"], ["3"], ["1", "37"]]
    numbers = [37, 999, 37, 37]  # the second is out of range: reset raises
    _, _, branches = played(scripts, numbers, environment=Broken())
    assert [b.error for b in branches] == [
        "ConnectionError: the world is away",
        "ValueError: record None has number=999; give a whole one from 1 to 100.",
        "ValueError: inf is no reward",
        "",
    ]
    assert [b.turns for b in branches] == [2, 1, 1, 2]
    assert np.isnan([b.reward for b in branches[:3]]).all()
    assert not any(b.finished for b in branches[:3])
    assert branches[3].reward == 0.5 and branches[3].finished
    assert all(len(b.tokens) and b.scored[-1] for b in branches)
    with pytest.raises(ConnectionError):
        played([["1", "2"]], [37], environment=Broken(), on_error="raise")


@dataclasses.dataclass(frozen=True)
class Shows:
    """Answers once, with a message of any parts and role."""

    parts: tuple = ()
    role: str = "user"

    def reset(self, prompt, record):
        return 0

    def step(self, state, said):
        seen = (say(self.role, self.parts),) if state == 0 else None
        return 1, seen, 1.0


def completer(bundle, ends, size, **options):
    """As `training.online.completer` makes one; `ends` end an answer."""

    def complete(groups, samples, seed):
        rows = [group for group in groups for _ in range(samples)]
        return generate_tokens(
            bundle.params,
            bundle.model.config,
            [group.prompt for group in rows],
            soft=[group.prompt_soft for group in rows],
            max_new_tokens=size,
            sampling=Sampling(1.0),
            eos_ids=ends,
            seed=seed,
            **options,
        )

    return complete


def compare(bundle, prompts, branches, samples, row_tokens):
    """The trainer's log-probs of every scored token against the sampler's."""
    config, groups = bundle.model.config, []
    for n, branch in enumerate(branches):
        group = prompts[n // samples].group
        size, scored, stream = len(group.prompt), branch.scored, None
        if config.grammar is not None:
            every = np.concatenate([group.prompt, branch.tokens])
            stream, forced = config.grammar.streams(every)
            scored = scored & ~forced[size:]
        soft = group.prompt_soft
        if soft is not None:
            at = np.arange(1, len(branch.tokens) + 1, dtype=np.int32)
            soft = Placement((), soft.position[:, -1:] + at, np.zeros_like(at))
        own = Branch(
            branch.tokens, scored, None if stream is None else stream[size:], soft
        )
        stream = None if stream is None else stream[:size]
        groups.append(dataclasses.replace(group, branches=(own,), prompt_stream=stream))
    media = media_plans(groups, Compute(row_tokens=row_tokens), config)
    batch = packing.one_a_row(groups, len(groups), row_tokens, media)
    found = np.asarray(logps(config, bundle.params, batch))
    worst = 0.0
    for row, (group, branch) in enumerate(zip(groups, branches, strict=True)):
        start = len(group.prompt)
        ours = found[row, start : start + len(branch.tokens)]
        wanted = np.where(group.branches[0].scored, branch.logps, 0)
        worst = max(worst, np.abs(ours - wanted).max())
    assert worst < 1e-4, worst
    print("worst difference of log-probs", worst)


# A random model seldom says its end of turn: other bytes end its answers, too.
ENDS = [TOK.eos_token_id, *range(3, 130)]


def test_log_probs_of_a_text_environment_equal_the_trainers():
    bundle = tiny_bundle("llama")
    prompts = [prompt(bundle.tokenizer, number=n) for n in (3, 70)]
    branches = rollout_turns(
        completer(bundle, ENDS, 16),
        environments.Guess(),
        prompts,
        bundle.tokenizer,
        samples=2,
        seed=1,
        max_turns=2,
        max_tokens=300,
        max_new_tokens=16,
    )
    assert all(branch.turns == 2 for branch in branches)
    assert all(branch.reward == 0 or branch.finished for branch in branches)
    compare(bundle, prompts, branches, 2, 256)
    # The seed decides, and turns and samples differ.
    first = [tuple(branch.tokens.tolist()) for branch in branches]
    assert len(set(first)) == 4


def test_log_probs_behind_a_picture_that_an_encoder_reads():
    """M-RoPE: a turn's positions go on behind those of the picture."""
    bundle = tiny_bundle("qwen2_5_vl")
    (asked, *_) = examples(["image"])
    tokens, soft = render_prompt(bundle.tokenizer, asked.prompt, bundle.coder)
    prompts = [
        Prompt(asked.prompt, EncodedGroup("p", tokens, (), prompt_soft=soft), {})
    ]
    branches = rollout_turns(
        completer(bundle, ENDS, 16),
        Shows(("so?",)),
        prompts,
        bundle.tokenizer,
        bundle.coder,
        samples=2,
        max_turns=2,
        max_tokens=100,
        max_new_tokens=16,
    )
    assert all(branch.turns == 2 for branch in branches)
    compare(bundle, prompts, branches, 2, 256)
    # A picture that is observed would need the encoder in mid-branch: refused by name.
    refused = rollout_turns(
        Scripted(bundle.tokenizer, "<|im_end|>", ["hm"]),
        Shows((asked.prompt[0].parts[0],)),
        prompts,
        bundle.tokenizer,
        bundle.coder,
        max_turns=2,
        max_tokens=100,
        max_new_tokens=8,
    )
    assert (
        "image' between" in refused[0].error or "['image'] between" in refused[0].error
    )


def test_an_image_environment_in_the_playground():
    """The model draws, hears a critique, draws again; rewards sum to the last score."""
    bundle = playground_bundle("24x2")
    block = bundle.coder.grammar.block("image")
    asked = tasks.prompts("train", 2, 0, ("t2i",))
    prompts = []
    for example in asked:
        tokens, _ = render_prompt(bundle.tokenizer, example.prompt, bundle.coder)
        tokens = np.append(tokens, np.int32(block.open_id))
        group = EncodedGroup(example.id, tokens, ())
        prompts.append(Prompt(example.prompt, group, dict(example.extra)))

    drawn = completer(bundle, [], block.total)

    def complete(groups, samples, seed):
        done = drawn(groups, samples, seed)
        return [dataclasses.replace(c, finished=True) for c in done]

    branches = rollout_turns(
        complete,
        environments.Redraw(attempts=2),
        prompts,
        bundle.tokenizer,
        bundle.coder,
        samples=2,
        max_turns=3,
        max_tokens=200,
        max_new_tokens=1,
        output="image",
    )
    for n, branch in enumerate(branches):
        assert branch.finished and branch.turns == 2, branch.error
        assert branch.scored.sum() == 2 * block.total
        assert [p.kind for m in branch.messages[::2] for p in m.parts] == ["image"] * 2
        assert "verdict bad" in branch.messages[1].text
        goal = Example("", asked[n // 2].prompt, extra=asked[n // 2].extra)
        last = oracle.score(goal, Response(branch.messages[-1:]))
        assert branch.reward == pytest.approx(last.overall)
        between = branch.tokens[~branch.scored]
        assert bundle.tokenizer.unk_token_id not in between
        assert (between == block.open_id).sum() == 1
    compare(bundle, prompts, branches, 2, 256)


def test_a_right_picture_ends_it():
    (example,) = tasks.prompts("train", 1, 0, ("t2i",))
    environment = environments.Redraw()
    state = environment.reset(example.prompt, example.extra)
    wrong = say("assistant", [oracle.part("image", np.zeros(16, np.int32))])
    state, seen, first = environment.step(state, wrong)
    assert seen[0].role == "user" and "shows nothing" in seen[0].text
    right = tasks.answer(example, np.random.default_rng(0)).messages[0]
    _, over, second = environment.step(state, right)
    assert over is None and first + second == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no goal"):
        environment.reset(example.prompt, {})


def test_observations_may_hold_codes():
    """A picture that a model with codes observes: its codes are seen and unscored."""
    bundle = playground_bundle("24x1")
    picture = oracle.part("image", np.full(16, 3, np.int32))
    start = prompt(bundle.tokenizer, bundle.coder, ("draw",))
    (branch,) = rollout_turns(
        Scripted(bundle.tokenizer, " <|end|>", ["one", "two"]),
        Shows(("what is it ", picture)),
        [start],
        bundle.tokenizer,
        bundle.coder,
        max_turns=2,
        max_tokens=100,
        max_new_tokens=8,
    )
    assert branch.error == "" and branch.finished
    whole = render(
        bundle.tokenizer, (*start.messages, *branch.messages), coder=bundle.coder
    )
    tokens = np.concatenate([start.group.prompt, branch.tokens])
    assert tokens.tolist() == whole.tokens[: len(tokens)].tolist()
    assert branch.scored.sum() == 4


def test_what_cannot_be_rendered_fails_the_branch_by_name():
    tok = tokenizer("gemma")
    _, _, (branch,) = played(
        [["hm"]], [1], tok, "<end_of_turn>", environment=Shows(("?",), "tool")
    )
    assert "TemplateError: the chat template refuses" in branch.error
