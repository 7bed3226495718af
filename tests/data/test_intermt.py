"""InterMT's rows, as InterMT-Bench publishes them, to Examples by hand."""

import json

import numpy as np
import pytest

from alanything_jax.data import formats, groups, media
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import BadRecord, Limits, encode

PAIR = {
    "front_convs": [
        {
            "round": 1,
            "prompt": "What is the arrow?",
            "prompt_images": ["images/a.png"],
            "response": "The nerve.\n\n<Image, close-up of it>\n\nMore?",
            "response_images": ["images/b.png"],
            "prompt_uuid": "p-1",
            "response_uuid": "r-1",
        },
        {
            "round": 2,
            "prompt": "And red?",
            "prompt_images": [""],
            "response": "An artery.",
        },
    ],
    "paired_convs": {
        "round": 3,
        "prompt": "Why?",
        "response_1": "So it is seen.",
        "response_1_images": [""],
        "response_2": "Who knows.",
        "response_2_images": ["images/c.png"],
    },
}
LOCAL = PAIR | {
    "local_overall_preference": {"text_quality": 1, "context_coherence": 1, "visual": 2}
}
GLOBAL = PAIR | {"overall_preference": {"helpfulness": 2, "style_coherence": 0}}


def read(row, format="auto"):
    return formats.reader(format, (), row)(row, "r-0")


def said(messages):
    return [
        (m.role, *(p.text if p.kind == "text" else p.uri for p in m.parts))
        for m in messages
    ]


HISTORY = [
    ("user", "images/a.png", "What is the arrow?"),
    ("assistant", "The nerve.\n\n", "images/b.png", "\n\nMore?"),
    ("user", "And red?"),
    ("assistant", "An artery."),
    ("user", "Why?"),
]
ANSWERS = [
    [("assistant", "So it is seen.")],
    [("assistant", "images/c.png", "Who knows.")],
]


def test_a_local_preference_compares_one_turn():
    example = read(LOCAL)
    assert said(example.prompt) == HISTORY
    assert [said(r.messages) for r in example.responses] == ANSWERS
    assert example.prompt[1].parts[1].meta == {"caption": "close-up of it"}
    assert example.feedback.chosen == 0 and example.feedback.rater == "intermt"
    assert example.extra["level"] == "local" and example.extra["round"] == 3
    votes = {c["dimension"]: c["votes"] for c in example.extra["choices"]}
    assert votes == {
        "text_quality": [1, 0],
        "context_coherence": [1, 0],
        "visual": [0, 1],
    }
    assert "unknown" not in example.extra


def test_a_global_preference_compares_conversations():
    example = read(GLOBAL)
    assert said(example.prompt) == HISTORY[:1]
    assert [said(r.messages) for r in example.responses] == [
        HISTORY[1:] + answer for answer in ANSWERS
    ]
    assert example.feedback.chosen == 1 and example.extra["level"] == "global"
    tie = {"helpfulness": 2, "style_coherence": 1, "context_awareness": None}
    assert read(PAIR | {"overall_preference": tie}).feedback.chosen is None


def test_turns_of_a_global_preference_are_scored():
    """Text alone: every turn of the model's own, none of what stands between."""
    plain = json.loads(json.dumps(GLOBAL).replace("images/", "").replace(".png", ""))
    for turn in (*plain["front_convs"], plain["paired_convs"]):
        for name in [n for n in turn if n.endswith("_images")]:
            del turn[name]
    tok = byte_tokenizer()
    group = encode(read(plain), tok, Limits())
    own = [tok.decode(b.tokens[b.scored]).split("<|im_end|>") for b in group.branches]
    start = ["The nerve.\n\n<Image, close-up of it>\n\nMore?", "An artery."]
    assert own == [[*start, "Who knows.", ""], [*start, "So it is seen.", ""]]


SCORED = {
    "conversations": [
        {
            "round": 0,
            "annotations": {
                "helpfulness": 2,
                "crucial_step_recognition": 1,
                "reason_crucial_step_recognition": "one is poor",
            },
        },
        {
            "round": 1,
            "round_conversations": {
                "prompt": "How?",
                "prompt_images": [],
                "response": "Slowly.",
                "response_images": ["images/x.png"],
                "prompt_uuid": "p",
                "response_uuid": "r",
            },
            "annotations": {"text_quality": 3, "reason_text_quality": "clear"},
        },
    ]
}


def test_scores_of_a_conversation_and_of_its_turns():
    example = read(SCORED)
    assert said(example.prompt) == [("user", "How?")]
    assert said(example.responses[0].messages) == [
        ("assistant", "images/x.png", "Slowly.")
    ]
    found = [(r.dimension, r.score, r.rationale) for r in example.feedback.ratings]
    assert found == [
        ("helpfulness", 2, None),
        ("crucial_step_recognition", 1, "one is poor"),
        ("text_quality@1", 3, "clear"),
    ]
    assert example.feedback.chosen is None and example.extra == {}


def test_flat_turns_with_one_annotation():
    turn = SCORED["conversations"][1]["round_conversations"]
    row = {
        "id": 7,
        "conversations": [{"round": n, **turn} for n in (1, 2)],
        "annotation": {
            "crucial_step_recognition": 3,
            "reason_crucial_step_recognition": "all are there",
        },
    }
    example = read(row)
    assert [m.role for m in example.responses[0].messages] == [
        "assistant",
        "user",
        "assistant",
    ]
    (rating,) = example.feedback.ratings
    assert (rating.dimension, rating.rationale) == (
        "crucial_step_recognition",
        "all are there",
    )
    assert example.extra == {"id": 7}


def test_unknown_fields_are_kept_counted_and_told(tmp_path):
    row = json.loads(json.dumps(GLOBAL)) | {"annotator": "ann"}
    row["paired_convs"]["model_1"] = "gpt"
    assert read(row).extra["unknown"] == {
        "annotator": "ann",
        "paired_convs.model_1": "gpt",
    }
    (tmp_path / "images").mkdir()
    for name in "abc":
        raw = media.dump("image", np.zeros((4, 4, 3), np.uint8))
        (tmp_path / "images" / f"{name}.png").write_bytes(raw)
    path, told = tmp_path / "rows.jsonl", []
    path.write_text(json.dumps(row) + "\n")
    # The model takes no pictures: set aside by name, and the fields are told all the same.
    data = groups.Data(str(path), max_bad_share=1.0)
    with pytest.raises(ValueError):
        groups.load_groups(data, byte_tokenizer(), 2, tmp_path / "q.jsonl", told.append)
    assert "user message holds image" in (tmp_path / "q.jsonl").read_text()
    assert "unknown columns" in told[0] and "annotator (1)" in told[0]


@pytest.mark.parametrize(
    "change,field,words",
    [
        ({"overall_preference": {"helpfulness": 4}}, "helpfulness", "none of 0, 1, 2"),
        ({"paired_convs": {"round": 3, "prompt": "Why?"}}, "response_1", "missing"),
        ({"paired_convs": "Why?"}, "paired_convs", "expected named fields"),
        ({"front_convs": [3]}, r"front_convs\[0\]", "expected named fields"),
        ({"front_convs": {"prompt": "a"}}, "front_convs", "expected a list"),
        ({"local_overall_preference": {}}, "preference", "give one of"),
    ],
)
def test_bad_rows_are_named(change, field, words):
    with pytest.raises(BadRecord, match=f"{field}.*{words}"):
        read(GLOBAL | change)
