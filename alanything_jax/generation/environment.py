"""Rollouts of several turns: the policy answers, an environment says what came of it, ...

    prompt | said ... <|im_end|> | \\n <|im_start|>tool ... assistant\\n | said ... | ...
           | as sampled, scored  | observed: seen and unscored          | scored   |

What the policy sampled stays as it was sampled, token for token; only what the chat
template puts between two of its turns is tokenized. So a trainer reads the very sequence
that the sampler read, and their log-probs agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from alanything_jax.data import coder as coders
from alanything_jax.data.coder import Coder
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.prompts import Prompt
from alanything_jax.data.soft import Placement
from alanything_jax.data.template import render_between
from alanything_jax.generation.decode import Completion
from alanything_jax.schema import Message, Modality

# prompts, samples each, seed -> completions, prompt after prompt
Complete = Callable[[Sequence[EncodedGroup], int, int], list[Completion]]


class Environment(Protocol):
    """What answers the policy: pure functions, of a frozen dataclass for its settings."""

    def reset(self, prompt: Sequence[Message], record: Mapping[str, Any]) -> Any:
        """The state before the first answer; `record` is what the source says."""
        ...

    def step(
        self, state: Any, said: Message
    ) -> tuple[Any, Sequence[Message] | None, float]:
        """The next state, the messages observed (None: it is over), and this turn's
        reward. Same arguments, same results: many branches share an environment."""
        ...


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One branch: what the policy said and, between its turns, observed.

    Attributes:
      tokens: [n] int32, behind the prompt. scored: [n] bool, the policy's own.
      logps: [n] float32, the sampler's; 0 where not scored.
      reward: summed over turns; NaN where the environment failed.
      finished: the environment ended it, and no turn was cut off.
      turns: answers. messages: answers and observations in turn.
      error: what the environment raised; "" = nothing.
    """

    tokens: np.ndarray
    scored: np.ndarray
    logps: np.ndarray
    reward: float
    finished: bool
    turns: int
    messages: tuple[Message, ...]
    error: str = ""


def rollout_turns(
    complete: Complete,
    environment: Environment,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    coder: Coder | None = None,
    *,
    max_turns: int,
    max_tokens: int,
    max_new_tokens: int,
    samples: int = 1,
    seed: int = 0,
    output: Modality = "text",
    on_error: Literal["drop", "raise"] = "drop",
) -> list[Trajectory]:
    """`samples` trajectories of each prompt, prompt after prompt.

    A trajectory is over when the environment ends or fails, when an answer was cut off,
    after `max_turns`, or where `max_tokens` leave no room for another answer. The last
    answer, cut off or not, is shown to the environment, too.

    Args:
      complete: answers of at most `max_new_tokens` tokens.
      max_tokens: of a trajectory, observations among them.
      output: "text", or the kind that each answer is one medium of; prompts then end with
        its opener, and `max_new_tokens` is its length.
      on_error: an environment that fails costs its trajectory the reward, or stops.

    Raises:
      ValueError: the first answer has no room, or the model has no such medium.
      whatever the environment raised, with on_error="raise".
    """
    opener: list[int] = []
    if output != "text":
        if coder is None:
            raise ValueError(f"output={output}: the model says text alone.")
        block = coder.grammar.block(output)
        opener, max_new_tokens = [block.open_id], block.total
    if max_turns < 1 or max_tokens < max_new_tokens:
        raise ValueError(
            f"max_turns={max_turns}, max_tokens={max_tokens}: there must be a turn, and "
            f"room for its {max_new_tokens} tokens."
        )
    room = max_tokens - max_new_tokens
    world = _World(environment, tokenizer, coder, opener, room, on_error)
    walks = [_Walk(prompt) for prompt in prompts for _ in range(samples)]
    for walk in walks:
        walk.begin(world)
    for turn in range(max_turns):
        going = [walk for walk in walks if walk.going or turn == 0]
        if not going:
            break
        draw = np.random.SeedSequence([seed, turn]).generate_state(1)[0]
        groups = [walk.group for walk in going]
        if turn == 0:  # the samples of a prompt may be read as one
            groups = [prompt.group for prompt in prompts]
        said = complete(groups, 1 if turn else samples, int(draw >> 1))
        for walk, completion in zip(going, said, strict=True):
            walk.take(completion, world, turn + 1 == max_turns)
    return [walk.trajectory() for walk in walks]


@dataclasses.dataclass(frozen=True)
class _World:
    """What answers, and in which tokens; `room` is for all before an answer."""

    environment: Environment
    tokenizer: Any
    coder: Coder | None
    opener: list[int]
    room: int
    on_error: str

    def message(self, tokens: np.ndarray) -> Message:
        """An answer, its media decoded."""
        tokens = np.append(self.opener, tokens).astype(np.int32)
        return Message("assistant", coders.parts(tokens, self.tokenizer, self.coder))

    def between(self, before, seen, last: int) -> np.ndarray:
        """What stands between an answer that ended with token `last` and the next one."""
        tokens = render_between(self.tokenizer, before, seen, self.coder)
        # Most answers have said their end of turn; one medium alone has none.
        tokens = tokens[1:] if tokens[:1].tolist() == [last] else tokens
        return np.append(tokens, self.opener).astype(np.int32)


class _Walk:
    """A trajectory under way."""

    def __init__(self, prompt: Prompt):
        self.prompt, self.state = prompt, None
        self.pieces: list[tuple[np.ndarray, np.ndarray | None]] = []
        self.messages: tuple[Message, ...] = ()
        self.reward, self.turns, self.error = 0.0, 0, ""
        self.going, self.finished = True, False

    @property
    def tokens(self) -> np.ndarray:
        none = np.zeros(0, np.int32)
        return np.concatenate([none, *(tokens for tokens, _ in self.pieces)])

    @property
    def group(self) -> EncodedGroup:
        """All so far, as the prompt of the next answer."""
        group, tokens = self.prompt.group, self.tokens
        return EncodedGroup(
            group.id,
            np.concatenate([group.prompt, tokens]),
            (),
            prompt_soft=_longer(group.prompt_soft, len(tokens)),
        )

    def begin(self, world):
        """Reset; a failure is kept for `take`, as the branch needs some token."""
        about = self.prompt.messages, self.prompt.record
        self._guarded(world, lambda: world.environment.reset(*about))

    def take(self, completion, world, last):
        """An answer, and what the environment makes of it."""
        self.pieces.append((completion.tokens, completion.logps))
        self.turns, self.going = self.turns + 1, False
        if not self.error:
            self._guarded(world, lambda: self._observe(completion, world, last))

    def _observe(self, completion, world, last):
        before = (*self.prompt.messages, *self.messages)
        said = world.message(completion.tokens)
        self.messages += (said,)
        state, seen, reward = world.environment.step(self.state, said)
        if not np.isfinite(reward):
            raise ValueError(f"{reward} is no reward")
        self.reward += float(reward)
        self.finished = seen is None and completion.finished
        if seen is None or last or not completion.finished:
            return state
        between = world.between(before, seen, int(completion.tokens[-1]))
        if len(self.tokens) + len(between) <= world.room:
            self.pieces.append((between, None))
            self.messages += tuple(seen)
            self.going = True
        return state

    def _guarded(self, world, make):
        """The next state; or what was wrong, and no reward."""
        try:
            self.state = make()
        # An environment is code of the user's: whatever it raises is counted by the loop.
        except Exception as error:
            if world.on_error == "raise":
                raise
            self.error = f"{type(error).__name__}: {error}"
            self.reward, self.going, self.finished = float("nan"), False, False

    def trajectory(self) -> Trajectory:
        """What came of it."""
        sizes = [len(tokens) for tokens, _ in self.pieces]
        own = [logps is not None for _, logps in self.pieces]
        logps = [
            np.zeros(len(tokens), np.float32) if logps is None else logps
            for tokens, logps in self.pieces
        ]
        return Trajectory(
            self.tokens,
            np.repeat(own, sizes),
            np.concatenate(logps).astype(np.float32),
            self.reward,
            self.finished,
            self.turns,
            self.messages,
            self.error,
        )


def _longer(soft, count):
    """A prompt's media, where `count` tokens follow: on from its last position."""
    if soft is None:
        return None
    at = np.arange(1, count + 1, dtype=np.int32)
    position = np.concatenate([soft.position, soft.position[:, -1:] + at], axis=1)
    return Placement(soft.media, position, np.append(soft.span, np.zeros_like(at)))
