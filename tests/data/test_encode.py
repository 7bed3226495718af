"""Groups of tokens by hand: prompt once, branches, limits, what is set aside."""

import json

import numpy as np
import pytest

from alanything_jax.data import groups
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import BadRecord, Limits, TooLong, encode
from alanything_jax.data.formats import trl
from alanything_jax.data.quarantine import TooManyBad

TOK = byte_tokenizer()


def example(chosen="yes", rejected="yeah no", prompt="ok?", **row):
    return trl.read(
        {"prompt": prompt, "chosen": chosen, "rejected": rejected} | row, "e"
    )


def test_prompt_once_and_branches():
    group = encode(example(score_chosen=2, score_rejected=0.5), TOK, Limits())
    assert TOK.decode(group.prompt) == (
        "<|im_start|>user\nok?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [TOK.decode(b.tokens) for b in group.branches] == [
        "yes<|im_end|>\n",
        "yeah no<|im_end|>\n",
    ]
    # The shared "ye" stays in the branches: the prompt ends at the header.
    assert [b.scored.tolist() for b in group.branches] == [
        [True] * 4 + [False],
        [True] * 8 + [False],
    ]
    assert group.numbers["margin"] == np.float32(1.5)


def test_chosen_comes_first():
    import dataclasses

    first = example()
    feedback = dataclasses.replace(first.feedback, chosen=1)
    group = encode(dataclasses.replace(first, feedback=feedback), TOK, Limits())
    assert TOK.decode(group.branches[0].tokens).startswith("yeah")


def test_plain_text():
    group = encode(example(), TOK, Limits(chat=False))
    assert TOK.decode(group.prompt) == "ok?"
    assert [TOK.decode(b.tokens) for b in group.branches] == [
        "yes<|im_end|>",
        "yeah no<|im_end|>",
    ]


def test_label_becomes_a_number():
    row = trl.read({"prompt": "a", "completion": "b", "label": False}, "e")
    assert encode(row, TOK, Limits()).numbers["label"].tolist() == [0.0]


@pytest.mark.parametrize("chat", [True, False])
def test_empty_response(chat):
    with pytest.raises(BadRecord, match=r"responses\[1\]: empty.*Remove the record"):
        encode(example(rejected="  "), TOK, Limits(chat=chat))


def test_limits_drop_or_cut():
    long = example(chosen="x" * 50, prompt="p" * 30)
    with pytest.raises(TooLong, match="group: .* limit max_group_tokens=90"):
        encode(long, TOK, Limits(max_group_tokens=90))
    limits = Limits(max_prompt_tokens=20, max_response_tokens=10, truncation="keep_end")
    group = encode(long, TOK, limits)
    assert group.truncated and len(group.prompt) == 20
    assert TOK.decode(group.prompt).endswith("<|im_start|>assistant\n")
    chosen, rejected = group.branches
    assert TOK.decode(chosen.tokens) == "x" * 9 + "<|im_end|>" and chosen.scored.all()
    assert TOK.decode(rejected.tokens) == "yeah no<|im_end|>\n"
    tight = Limits(max_group_tokens=60, max_prompt_tokens=40, truncation="keep_end")
    cut = encode(long, TOK, tight)
    assert len(cut.prompt) + sum(len(b.tokens) for b in cut.branches) <= 60
    with pytest.raises(TooLong, match="no response fits"):
        encode(long, TOK, Limits(max_group_tokens=40, truncation="keep_end"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_bad_records_are_listed_and_the_rest_goes_on(tmp_path):
    rows = [GOOD, GOOD | {"chosen": ""}, {"prompt": "a", "chosen": "b"}, GOOD]
    rows.append(GOOD | {"chosen": "x" * 500})
    path, told = write(tmp_path / "d.jsonl", rows), []
    data = groups.Data(path, max_bad_share=0.5, max_group_tokens=200)
    train, heldout = groups.load_groups(data, TOK, 2, tmp_path / "q.jsonl", told.append)
    assert len(train) == 2 and heldout == []
    listed = [
        json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()
    ]
    assert [(e["row"], e["fault"]) for e in listed] == [
        (1, True),
        (2, True),
        (4, False),
    ]
    assert "responses[0]: empty" in listed[0]["reason"]
    assert "5 records, 2 kept (2 bad, 1 over a token limit)" in told[0]


def test_too_many_bad_records_stop_the_run_with_the_list(tmp_path):
    path = write(tmp_path / "d.jsonl", [GOOD, GOOD | {"rejected": ""}])
    with pytest.raises(
        TooManyBad, match=r"1 of 2 records are bad.*d.jsonl row 1.*q.jsonl"
    ):
        groups.load_groups(groups.Data(path), TOK, 2, tmp_path / "q.jsonl")


def test_nothing_left_to_train_on(tmp_path):
    path = write(tmp_path / "d.jsonl", [GOOD] * 3)
    with pytest.raises(ValueError, match="3 groups .* 3 are to be held out"):
        groups.load_groups(
            groups.Data(path, heldout_groups=3), TOK, 2, tmp_path / "q.jsonl"
        )


def test_an_algorithm_that_compares_refuses_single_responses(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(TooManyBad, match="compares 2, the record has 1"):
        groups.load_groups(groups.Data(path), TOK, 2, tmp_path / "q.jsonl")


def test_split_is_by_seed_and_keeps_order():
    items = [encode(example(), TOK, Limits()) for _ in range(10)]
    train, heldout = groups.split(items, 3, seed=0)
    assert len(train) == 7 and len(heldout) == 3
    again = groups.split(items, 3, seed=0)
    assert [id(g) for g in heldout] == [id(g) for g in again[1]]
