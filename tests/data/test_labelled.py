"""Single answers with a label: alone, beside another prompt's answer, judged in a word."""

import json

import numpy as np
import pytest

from alanything_jax.data import groups, views
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import Branch, EncodedGroup
from alanything_jax.data.formats import trl
from alanything_jax.data.soft import Placement

PAIR = trl.read({"prompt": "x", "chosen": "good", "rejected": "bad"}, "p")
SINGLE = trl.read({"prompt": "x", "completion": "poor", "label": False}, "s")


def said(example):
    return [r.messages[0].text for r in example.responses]


def test_a_pair_has_a_desirable_and_an_undesirable_answer():
    found = list(views.of(PAIR, "labelled", None))
    assert [(said(e), e.feedback.labels) for e in found] == [
        (["good"], (True,)),
        (["bad"], (False,)),
    ]
    (one,) = views.of(SINGLE, "mismatched", None)
    assert (said(one), one.feedback.labels) == (["poor"], (False,))


def test_verdicts_ask_about_the_answer():
    for example, right in zip(
        [*views.of(PAIR, "verdicts", None), *views.of(SINGLE, "verdicts", None)],
        ["Yes", "No", "No"],
        strict=True,
    ):
        assert [m.role for m in example.prompt] == ["user", "assistant", "user"]
        assert said(example)[example.feedback.chosen] == right
        assert sorted(said(example)) == ["No", "Yes"]


def encoded(name, prompt, response, soft=None):
    tokens = np.array(response, np.int32)
    branch = Branch(tokens, np.ones(len(tokens), bool), soft=soft)
    return EncodedGroup(name, np.array(prompt, np.int32), (branch,))


def test_mismatched_is_another_prompts_answer_that_fits():
    items = [encoded(str(n), [n // 2], [n] * (1 + n)) for n in range(10)]
    out = groups.mismatched(items, 0, 14)
    again = groups.mismatched(items, 0, 14)
    other = groups.mismatched(items, 1, 14)
    seconds = [g.branches[1].tokens[0] for g in out]
    assert seconds == [g.branches[1].tokens[0] for g in again]
    assert seconds != [g.branches[1].tokens[0] for g in other]
    for n, (group, second) in enumerate(zip(out, seconds, strict=True)):
        assert group.branches[0] is items[n].branches[0]
        assert second // 2 != n // 2
        assert 1 + (1 + n) + len(group.branches[1].tokens) <= 14
    # Nothing fits, or no other prompt is there: the group stays as it is.
    assert all(len(g.branches) == 1 for g in groups.mismatched(items, 0, 3))
    assert len(groups.mismatched(items[:2], 0, 14)[0].branches) == 1


def test_positions_of_a_mismatched_answer_go_on_from_its_prompt():
    def soft(start, size):
        at = np.arange(start, start + size, dtype=np.int32)
        return Placement((), np.stack([at] * 3), np.zeros(size, np.int32))

    items = [encoded("a", [0], [1, 1], soft(7, 2)), encoded("b", [1], [2, 2, 2])]
    first, second = groups.mismatched(items, 0, 14)
    np.testing.assert_array_equal(first.branches[1].soft.position, [[7, 8, 9]] * 3)
    assert second.branches[1].soft is None


@pytest.mark.parametrize("view,sizes", [("labelled", {1}), ("mismatched", {2})])
def test_groups_of_pairs_are_labelled(tmp_path, view, sizes):
    rows = [
        {"prompt": f"say {n}", "chosen": "a" * (n + 1), "rejected": "b" * (n + 1)}
        for n in range(6)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, {"prompt": "x", "completion": "no label"}]))
    data = groups.Data(str(path), view=view, heldout_groups=4)
    tokenizer = byte_tokenizer()
    train, heldout = groups.load_groups(
        data, tokenizer, max(sizes), tmp_path / "bad.jsonl", lambda line: None
    )
    assert (len(train), len(heldout)) == (8, 4)
    for group in (*train, *heldout):
        assert {len(group.branches)} == sizes
        assert group.numbers["label"].shape == (1,)
    assert sum(g.numbers["label"][0] for g in (*train, *heldout)) == 6
    # The last row: nobody said whether it is good.
    (bad,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert "label" in bad
