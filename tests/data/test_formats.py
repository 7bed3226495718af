"""Rows as sources hold them to Examples, by hand; bad rows by field and remedy."""

import json

import pytest

from alanything_jax.data import formats, groups, sources
from alanything_jax.data.encode import BadRecord


def read(row, format="auto", columns=()):
    return formats.reader(format, columns, row)(row, "r-0")


def said(messages):
    return [(m.role, m.text) for m in messages]


def chat(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_trl_conversational_preference():
    row = {
        "prompt": chat(("user", "2+2?")),
        "chosen": chat(("assistant", "4")),
        "rejected": chat(("assistant", "5")),
        "score_chosen": 3.0,
        "score_rejected": 1.5,
        "origin": "unit",
    }
    example = read(row)
    assert said(example.prompt) == [("user", "2+2?")]
    assert [said(r.messages) for r in example.responses] == [
        [("assistant", "4")],
        [("assistant", "5")],
    ]
    assert example.feedback.chosen == 0 and example.feedback.margin == 1.5
    assert example.extra["origin"] == "unit" and example.extra["score_chosen"] == 3.0


def test_trl_implicit_prompt():
    shared = [("system", "be brief"), ("user", "hi")]
    row = {
        "chosen": chat(*shared, ("assistant", "yo")),
        "rejected": chat(*shared, ("assistant", "no")),
    }
    example = read(row)
    assert said(example.prompt) == shared
    assert [said(r.messages)[0][1] for r in example.responses] == ["yo", "no"]


def test_trl_prompt_completion_and_kto():
    example = read({"prompt": "a", "completion": "b"})
    assert said(example.prompt) == [("user", "a")] and example.feedback.labels == ()
    for label in (True, False):
        row = {"prompt": "a", "completion": "b", "label": label}
        assert read(row).feedback.labels == (label,)


def test_trl_prompt_alone():
    example = read({"id": "7", "prompt": "draw a cat"})
    assert example.prompt[0].text == "draw a cat" and example.responses == ()
    with pytest.raises(ValueError, match="no format reads a row"):
        read({"prompt": "draw a cat", "reply": "no"})


def test_prompts_with_what_rewards_read():
    row = {"question": "a number?", "number": 7, "image": {"bytes": b"A"}}
    example = formats.reader("auto", ("prompt=question",), row)(row, "r")
    assert [p.kind for p in example.prompt[0].parts] == ["image", "text"]
    assert example.responses == () and example.extra == {"number": 7}


def test_trl_messages():
    row = {
        "messages": chat(
            ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
        )
    }
    example = read(row)
    assert said(example.prompt) == [("user", "a")]
    assert said(example.responses[0].messages) == [
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]


def test_hh_rlhf_splits_at_the_last_shared_assistant_turn():
    head = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"
    example = read(
        {"chosen": head + " see you", "rejected": head + " so long\n\nHuman: ok"}
    )
    assert said(example.prompt) == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "bye"),
    ]
    assert said(example.responses[0].messages) == [("assistant", "see you")]
    assert said(example.responses[1].messages) == [
        ("assistant", "so long"),
        ("user", "ok"),
    ]


def test_hh_rlhf_a_shared_first_word_stays_in_the_answer():
    head = "\n\nHuman: hi\n\nAssistant:"
    example = read({"chosen": head + " I am well", "rejected": head + " I am not"})
    assert said(example.responses[0].messages) == [("assistant", "I am well")]


def test_hh_rlhf_different_conversations():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b",
        "rejected": "\n\nHuman: x\n\nAssistant: y",
    }
    with pytest.raises(BadRecord, match="no common prefix"):
        read(row)


def test_sharegpt():
    row = {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "yo"},
        "rejected": {"from": "gpt", "value": "no"},
        "system": "be kind",
    }
    example = read(row)
    assert said(example.prompt) == [("system", "be kind"), ("user", "hi")]
    assert example.feedback.chosen == 0
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert said(read({"conversations": turns}).responses[0].messages) == [
        ("assistant", "b")
    ]
    with pytest.raises(BadRecord, match="unknown speaker 'robot'"):
        read({"conversations": [{"from": "robot", "value": "a"}]})


def test_column_map():
    row = {"question": "a", "good": "b", "bad": "c", "more": 1}
    columns = ("prompt=question", "chosen=good", "rejected=bad")
    example = read(row, columns=columns)
    assert said(example.prompt) == [("user", "a")] and example.extra == {"more": 1}
    with pytest.raises(BadRecord, match="god: missing.*Did you mean 'good'"):
        read(row, columns=("prompt=question", "chosen=god", "rejected=bad"))
    with pytest.raises(ValueError, match="write OURS=THEIRS"):
        read(row, columns=("promt=question",))


def test_missing_and_misspelt_columns():
    with pytest.raises(BadRecord, match="chosen: missing.*Did you mean 'chosn'"):
        read({"prompt": "a", "chosn": "b", "rejected": "c"}, format="trl")
    with pytest.raises(ValueError, match="no format reads a row with the fields"):
        read({"question": "a"})
    with pytest.raises(ValueError, match="format 'tlr': choose auto"):
        read({"prompt": "a"}, format="tlr")
    with pytest.raises(BadRecord, match=r"prompt\[0\]: needs role and content"):
        read({"prompt": [{"role": "user"}], "completion": "b"})


@pytest.mark.parametrize(
    "row, wrong",
    [
        ({"messages": [{"role": None, "content": "a"}]}, r"messages\[0\].role.*text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "expected text, got 3",
        ),
        ({"conversations": [{"from": "human", "value": ["a"]}]}, "0\\].value.*text"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "0\\].from.*text"),
        (
            {"conversations": [{"from": "human", "value": "a"}], "system": [1]},
            "system: expected text",
        ),
        ("a line", "expected an object, got 'a line'"),
        (None, "expected an object, got None"),
    ],
)
def test_rows_of_other_types_are_set_aside(row, wrong, tmp_path):
    """They do not stop a run."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, ROWS[0]])))
    found = [found for _, found in groups.examples(str(path), "auto")]
    if not isinstance(row, dict):
        assert found[1].prompt[0].text == "p0"
    assert isinstance(found[0], BadRecord)
    with pytest.raises(BadRecord, match=wrong):
        raise found[0]


ROWS = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(5)]


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_every_kind_of_file(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert [row for _, row in sources.rows(path)] == ROWS
    assert [e.prompt[0].text for _, e in groups.examples(str(path))] == [
        f"p{n}" for n in range(5)
    ]


def test_json_that_holds_lines(tmp_path):
    """As `datasets.Dataset.to_json` writes it."""
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert [row for _, row in sources.rows(path)] == ROWS


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data at"):
        list(sources.rows(tmp_path / "none.json"))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match="a.csv: give one of"):
        list(sources.rows(tmp_path / "a.csv"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is no valid JSON"):
        list(sources.rows(tmp_path / "a.json"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="a.parquet is no readable parquet"):
        list(sources.rows(tmp_path / "a.parquet"))
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"\n')
    (_, good), (number, bad) = sources.rows(tmp_path / "a.jsonl")
    assert good == {"a": 1} and number == 1 and "line 2 is no valid JSON" in str(bad)
