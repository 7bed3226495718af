"""Media in columns of chat rows, at their placeholders; numbers that differ are named."""

import base64
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from alanything_jax.data import formats, groups, media, media_root
from alanything_jax.data.encode import BadRecord

A, B = {"bytes": b"A", "path": "a.png"}, {"bytes": b"B", "path": None}
IMAGE = {"type": "image"}


def text(said):
    return {"type": "text", "text": said}


def read(row, format="auto"):
    return formats.reader(format, (), row)(row, "r-0")


def shown(messages):
    return [
        [p.text if p.kind == "text" else (p.kind, p.data or p.uri) for p in m.parts]
        for m in messages
    ]


def turn(role, content):
    return {"role": role, "content": content}


def test_trl_typed_parts_in_order():
    row = {
        "images": [A, B],
        "messages": [
            turn("user", [IMAGE, text("or <image>"), IMAGE, text("?")]),
            turn("assistant", [text("the first")]),
        ],
        "source": "unit",
    }
    example = read(row)
    # With typed parts, the mark in a text is a word.
    assert shown(example.prompt) == [
        [("image", b"A"), "or <image>", ("image", b"B"), "?"]
    ]
    assert shown(example.responses[0].messages) == [["the first"]]
    assert example.extra == {"source": "unit"}
    assert example.prompt[0].parts[0].meta == {"path": "a.png"}


def test_data_uris_and_contents_in_the_place_of_a_path(tmp_path):
    """A name that no file system takes is one bad record, not the end of the run."""
    good = "data:image/png;base64," + base64.b64encode(b"A").decode()
    uris = [good, "data:image/png,A", "data:image/png;base64,*", "iVBORw0" * 999]
    rows = [
        {
            "image": uri,
            "conversations": [
                {"from": "human", "value": "<image>?"},
                {"from": "gpt", "value": "x"},
            ],
        }
        for uri in uris
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = [found for _, found in groups.examples(str(path))]
    assert shown(found[0].prompt) == [[("image", b"A"), "?"]]
    assert "not in base64" in str(found[1]) and "cannot be read" in str(found[2])
    assert "is no path" in str(found[3]) and len(str(found[3])) < 300


def test_links_that_lead_to_themselves(tmp_path):
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(media.MediaError, match=r"a\.png"):
        media_root.MediaRoot(tmp_path).read("a.png")


def test_trl_preferences_and_prompts(tmp_path):
    sides = {s: [turn("assistant", [text(s)])] for s in ("chosen", "rejected")}
    row = {"images": [A], "prompt": [turn("user", [IMAGE, text("what?")])], **sides}
    example = read(row)
    assert shown(example.prompt) == [[("image", b"A"), "what?"]]
    assert [shown(r.messages) for r in example.responses] == [
        [["chosen"]],
        [["rejected"]],
    ]
    bare = {"image": A, "prompt": "what?"}
    assert shown(read(bare).prompt) == [[("image", b"A"), "what?"]]
    # As parquet holds it: every struct has every field.
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    for _, found in groups.examples(str(path)):
        assert shown(found.prompt) == shown(example.prompt)


def test_trl_plain_texts_have_the_media_before_the_first_user():
    row = {
        "images": [A, B],
        "messages": [
            turn("system", "be brief"),
            turn("user", "what?"),
            turn("assistant", "a"),
        ],
    }
    assert shown(read(row).prompt)[1] == [("image", b"A"), ("image", b"B"), "what?"]
    row["messages"].pop(1)
    with pytest.raises(BadRecord, match="no user message for 2 media"):
        read(row)


def test_a_medium_of_its_own_in_a_part():
    part = {"type": "image", "image": A, "text": None}
    row = {"prompt": [turn("user", [part, text("?")])], "completion": "a"}
    assert shown(read(row).prompt) == [[("image", b"A"), "?"]]
    row["prompt"][0]["content"][0] = IMAGE
    with pytest.raises(BadRecord, match="images: 0 given for 1 placeholders"):
        read(row)
    row["prompt"][0]["content"] = ["?"]
    with pytest.raises(BadRecord, match="part of unknown type"):
        read(row)


def test_llama_factory_messages_with_every_kind():
    row = {
        "images": ["a.png"],
        "videos": ["v.mp4"],
        "audios": [{"array": [0.0, 1.0], "sampling_rate": 16000}],
        "messages": [
            turn("user", "<audio>hear, <image>see<video>"),
            turn("assistant", "ok"),
        ],
    }
    sound, *rest = read(row).prompt[0].parts
    np.testing.assert_array_equal(sound.data, [0.0, 1.0])
    assert sound.kind == "audio" and sound.meta["rate"] == 16000
    assert [p.text or p.uri for p in rest] == ["hear, ", "a.png", "see", "v.mp4"]


def human(said):
    return {"from": "human", "value": said}


def gpt(said):
    return {"from": "gpt", "value": said}


def test_llava_and_text_alone():
    turns = [human("<image>\nWhat is <video>?"), gpt("a cat")]
    row = {"id": "7", "image": "coco/1.jpg", "conversations": turns}
    example = read(row)
    # There is no column of videos: the word is text.
    assert shown(example.prompt) == [[("image", "coco/1.jpg"), "\nWhat is <video>?"]]
    assert example.extra == {"id": "7"}
    assert shown(read({"conversations": turns}).prompt) == [[turns[0]["value"]]]
    plain = {"image": None, "conversations": [human("hi"), gpt("yo")]}
    assert shown(read(plain).prompt) == [["hi"]]


def test_llama_factory_preference_takes_prompt_chosen_rejected():
    row = {
        "images": [A, B, {"bytes": b"C"}],
        "conversations": [human("<image>edit it")],
        "chosen": gpt("<image>"),
        "rejected": gpt("here: <image>"),
    }
    example = read(row)
    assert shown(example.prompt) == [[("image", b"A"), "edit it"]]
    assert shown(example.responses[0].messages) == [[("image", b"B")]]
    assert shown(example.responses[1].messages) == [["here: ", ("image", b"C")]]
    assert example.feedback.chosen == 0


@pytest.mark.parametrize(
    "given, said, told",
    [
        ([A, B], "<image>what?", "images: 2 given for 1 placeholders"),
        ([A], "<image><image>what?", "images: 1 given for 2 placeholders"),
        ([], "<image>what?", "images: 0 given for 1 placeholders"),
        ([A], "what?", "images: 1 given for 0 placeholders"),
    ],
)
def test_numbers_that_differ(given, said, told):
    row = {"images": given, "conversations": [human(said), gpt("a")]}
    with pytest.raises(BadRecord, match=told):
        read(row)
    if "<" in said:
        row = {
            "images": given,
            "messages": [turn("user", said), turn("assistant", "a")],
        }
        with pytest.raises(BadRecord, match=told):
            read(row)


def test_paths_are_of_the_files_folder_or_the_media_root(tmp_path):
    (tmp_path / "in" / "coco").mkdir(parents=True)
    picture = media.dump("image", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "in" / "coco" / "1.png").write_bytes(picture)
    (tmp_path / "out.png").write_bytes(picture)
    names = ["coco/1.png", "../out.png", str(tmp_path / "out.png"), "none.png"]
    names += ["https://example.org/a.png"]
    turns = [human("<image>what?"), gpt("a")]
    rows = [{"image": name, "conversations": turns} for name in names]
    path = tmp_path / "in" / "d.json"
    path.write_text(json.dumps(rows))
    found = [example for _, example in groups.examples(str(path))]
    assert found[0].prompt[0].parts[0].data == picture
    assert all("leads out of" in str(error) for error in found[1:3])
    assert "no none.png in" in str(found[3])
    # Nothing is fetched; what needs the picture refuses the address.
    assert found[4].prompt[0].parts[0].uri == names[4]
    wide = [e for _, e in groups.examples(str(path), media_folder=str(tmp_path))]
    assert "no coco/1.png" in str(wide[0])
    assert wide[2].prompt[0].parts[0].data == picture
