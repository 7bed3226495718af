"""A judge's grades as rewards: what it says in words, or nonsense."""

import math

import numpy as np
import pytest

from alanything_jax.rewards import combine
from alanything_jax.rewards.combine import Rewards, Term
from alanything_jax.rewards.judged import Judged
from alanything_jax.schema import Message, Part, Response
from tests.rewards.test_judge import Server, good

PROMPT = (Message("user", (Part("text", text="name a colour"),)),)
ROW = (PROMPT, Response((Message("assistant", (Part("text", text="red"),)),)), {})


@pytest.fixture
def judged():
    """says -> the reward of a server that answers so, one after another."""
    servers = []

    def start(*says, **fields):
        servers.append(Server())
        steps = [(200, {}, good(text)) for text in says]
        servers[-1].plan["grade it"] = steps
        return Judged(servers[-1].url, "m", ask="grade it", **fields), servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "said, grade",
    [
        ("It is one. <score>7</score>", 0.7),
        ("<score>2</score>, no: <score> 4.5 </score>", 0.45),
        ("I like it", math.nan),
        ("<score>70</score>", math.nan),
        ("<score>-1</score>", math.nan),
        ("<score>seven</score>", math.nan),
    ],
)
def test_a_grade_or_none(judged, said, grade):
    reward, server = judged(said)
    np.testing.assert_allclose(reward([ROW]), [grade])
    texts = [m["content"] for m in server.seen[0][2]["messages"]]
    assert texts == ["name a colour", "red", "grade it"]


def test_nonsense_is_counted_and_its_row_has_no_reward(judged):
    reward, _ = judged("<score>10</score>", "nonsense", "<score>5</score>")
    rewards = Rewards((Term("judge", reward, weight=2.0, batched=True),))
    found = [combine.score(rewards, [ROW]) for _ in range(3)]
    np.testing.assert_allclose([f.total[0] for f in found], [2.0, math.nan, 1.0])
    assert [sum(f.errors.values()) for f in found] == [0, 1, 0]


def test_the_budget_is_of_the_whole_run(judged):
    reward, server = judged("<score>5</score>", budget_requests=2)
    grades = [reward([ROW])[0] for _ in range(4)]
    np.testing.assert_allclose(grades, [0.5, 0.5, math.nan, math.nan])
    assert len(server.seen) == 2
