"""Out to Label Studio and back: every modality, the shuffle undone, several people."""

import collections
import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from alanything_jax.data import feedback, media
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import label_studio, label_studio_tasks
from alanything_jax.evaluation import agreement
from alanything_jax.schema import (
    Critique,
    Example,
    Feedback,
    Message,
    Part,
    Rating,
    Response,
)


def medium(kind, n):
    rng = np.random.default_rng(n)
    if kind == "text":
        return Part("text", text=f"answer {n} <b> & $x")
    if kind == "audio":
        array = rng.uniform(-0.5, 0.5, 400).astype(np.float32)
        return Part("audio", data=media.dump("audio", array, rate=8000))
    shape = (4, 4, 3) if kind == "image" else (3, 4, 4, 3)
    array = rng.integers(0, 2, shape).astype(np.uint8) * 255
    return Part(kind, data=media.dump(kind, array))


def example(kinds, id="e", prompt=("text",)):
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    asked = Message("user", tuple(medium(kind, 7) for kind in prompt))
    answers = tuple(
        Response((Message("assistant", tuple(medium(kind, n) for kind in kinds)),))
        for n in (1, 2)
    )
    return Example(id, (asked,), answers, extra={"models": ["a", "b"]})


def only(folder):
    (layout,) = folder.iterdir()
    return layout, json.loads((layout / "tasks.json").read_text())


def control(name, said):
    field = "choices" if isinstance(said, str) else "text"
    value = {field: [said] if isinstance(said, str) else said}
    return {"from_name": name, "to_name": "first", "type": field, "value": value}


def annotated(task, by, better, **more):
    """What a person who grades response k of the example with k + 1 would hand in."""
    ours = task["data"]["alanything"]
    result = []
    for slot, number in zip(label_studio.SLOTS, ours["order"], strict=True):
        for name in ours["dimensions"]:
            result.append(control(f"{slot}_{name}", str(number + 1)))
        result.append(control(f"{slot}_critique", [f"about {number}"]))
        result.append(control(f"{slot}_refinement", [f"change {number}"]))
    shown = "tie"
    if better is not None:
        shown = label_studio.SLOTS[ours["order"].index(better)]
    result.append(control("choice", shown))
    return {"completed_by": by, "was_cancelled": False, "result": result, **more}


ANN = {"id": 3, "email": "ann@x.org", "first_name": "Ann", "last_name": "B"}


@pytest.mark.parametrize(
    "kinds,prompt",
    [
        ("text", ("text",)),
        ("text", ("text", "image", "audio")),
        ("image", ("text",)),
        ("image", ("image",)),
        ("audio", ("text",)),
        ("video", ("text", "video")),
        (("text", "image"), ("text", "image")),
    ],
)
def test_round_trip(tmp_path, kinds, prompt):
    orders = collections.Counter()
    for n in range(8):
        original = example(kinds, f"e{n}", prompt)
        folder = tmp_path / str(n)
        done = label_studio_tasks.export([original], folder)
        layout, (task,) = only(folder)
        assert done.folders == {layout.name: 1} and done.aside == ()
        row = {"id": 5, **task, "annotations": [annotated(task, ANN, 1)]}
        assert label_studio.claims(row)
        found = label_studio.read(row, "ignored")
        orders[tuple(found.extra["shown"]["order"])] += 1
        back = label_studio_tasks.restore(found, layout / "media")
        assert (back.id, back.prompt, back.responses) == (
            original.id,
            original.prompt,
            original.responses,
        )
        assert found.extra["models"] == ["a", "b"]
        dimensions = feedback.DIMENSIONS[feedback.modality(original)]
        assert {(r.response, r.dimension, r.score) for r in found.feedback.ratings} == {
            (k, name, k + 1.0) for k in (0, 1) for name in dimensions
        }
        assert (found.feedback.chosen, found.feedback.rater) == (1, "ann@x.org")
        assert {(c.response, c.text) for c in found.feedback.critiques} == {
            (k, f"Critique: about {k}\nRefinement: change {k}") for k in (0, 1)
        }
    assert len(orders) == 2  # some were shown the other way round


def test_the_interface_shows_every_field_of_its_tasks_and_asks_everything(tmp_path):
    examples = [
        example(kinds, f"{n}-{kinds}", prompt)
        for n in range(3)
        for kinds in ("text", "image", "audio", "video", ("text", "video"))
        for prompt in (("text",), ("text", "image"))
    ]
    done = label_studio_tasks.export(examples, tmp_path, prefix="/data/x/?d=media/")
    assert sum(done.folders.values()) == 30 and len(done.folders) == 10
    for folder in tmp_path.iterdir():
        view = ElementTree.parse(folder / "labels.xml").getroot()
        objects = {e.get("name") for e in view.iter() if e.get("value", "")[:1] == "$"}
        controls = [e for e in view.iter() if e.get("toName")]
        assert {c.get("toName") for c in controls} <= objects
        names = [c.get("name") for c in controls] + sorted(objects)
        assert len(names) == len(set(names))
        for task in json.loads((folder / "tasks.json").read_text()):
            data = dict(task["data"])
            ours = data.pop("alanything")
            assert set(data) == objects
            links = [v for v in data.values() if v.startswith("/data/x/?d=media/")]
            for link in links:
                assert (folder / "media" / link.split("media/")[1]).is_file()
            due = {f"{s}_{d}" for s in label_studio.SLOTS for d in ours["dimensions"]}
            required = {c.get("name") for c in controls if c.get("required")}
            assert required == due | {"choice"}
        # A GIF is an image to Label Studio.
        assert not list(view.iter("Video"))
        grades = view.find(".//Choices[@name='first_safety']")
        assert [c.get("value") for c in grades] == ["0", "1", "2", "3"]


def test_order_is_a_function_of_seed_and_id(tmp_path):
    examples = [example("text", f"e{n}") for n in range(200)]

    def orders(name, seed, some):
        label_studio_tasks.export(some, tmp_path / name, seed=seed)
        _, tasks = only(tmp_path / name)
        return {
            t["data"]["alanything"]["id"]: t["data"]["alanything"]["order"]
            for t in tasks
        }

    one = orders("a", 0, examples)
    assert one == orders("b", 0, examples[::-1]) and one != orders("c", 1, examples)
    assert 70 < sum(order == [1, 0] for order in one.values()) < 130
    with pytest.raises(ValueError, match="not empty"):
        label_studio_tasks.export(examples, tmp_path / "a")


def test_several_people(tmp_path):
    label_studio_tasks.export([example("text")], tmp_path)
    _, (task,) = only(tmp_path)
    people = [
        annotated(task, ANN, 1),
        annotated(task, 12, 0),
        annotated(task, {"first_name": "Cem", "last_name": "D"}, 1),
        annotated(task, {"email": "late@x.org"}, None, was_cancelled=True, result=[]),
    ]
    found = label_studio.read({**task, "annotations": people}, "")
    names = ["12", "Cem D", "ann@x.org"]
    raters, table = agreement.choices([found])
    assert (raters, table[:, 0].tolist()) == (names, [0, 1, 1])
    assert agreement.ratings([found], "safety")[0] == names
    assert found.feedback.chosen == 1 and found.feedback.margin == pytest.approx(1 / 3)
    assert found.feedback.rater == "ann@x.org, 12, Cem D"
    assert found.extra["skipped"] == ["late@x.org"]
    tied = label_studio.read({**task, "annotations": people[:2]}, "")
    assert tied.feedback.chosen is None and tied.feedback.margin == 0


def test_earlier_feedback_stays_and_a_rewrite_is_a_refinement(tmp_path):
    earlier = Feedback(
        0,
        ratings=(Rating(0, "safety", 2.5, "w", "judge"),),
        critiques=(Critique("c", 0, rater="judge"),),
        rater="judge",
    )
    original = dataclasses.replace(example("text"), feedback=earlier)
    label_studio_tasks.export([original], tmp_path)
    _, (task,) = only(tmp_path)
    made = annotated(task, ANN, 1)
    slot = label_studio.SLOTS[task["data"]["alanything"]["order"].index(0)]
    made["result"].append(control(f"{slot}_rewrite", ["a better answer"]))
    made["result"].append(control("choice_rationale", ["it is kinder"]))
    found = label_studio.read({**task, "annotations": [made]}, "")
    assert found.feedback.ratings[0] == earlier.ratings[0]
    assert found.feedback.critiques[0] == earlier.critiques[0]
    (refined,) = [c.refinement for c in found.feedback.critiques if c.refinement]
    assert refined.messages[0].text == "a better answer"
    first, second = found.extra["choices"]
    assert (first["rater"], first["chosen"]) == ("judge", 0)
    assert (second["chosen"], second["rationale"]) == (1, "it is kinder")


def drop(made, name):
    made["result"] = [r for r in made["result"] if r["from_name"] != name]


def set_value(made, name, value):
    for result in made["result"]:
        if result["from_name"] == name:
            result["value"] = value


@pytest.mark.parametrize(
    "spoil,says",
    [
        (lambda made: drop(made, "choice"), "ann@x.org: choice is not answered"),
        (lambda made: drop(made, "second_safety"), "second_safety is not answered"),
        (
            lambda made: set_value(made, "first_safety", {"choices": ["5"]}),
            "first_safety is '5'; one of",
        ),
        (
            lambda made: set_value(made, "choice", {"rating": 3}),
            "a result that is no choice or text",
        ),
        (lambda made: set_value(made, "choice", {"choices": []}), "not answered"),
        (lambda made: made["result"].append("x"), "no choice or text"),
        (lambda made: made["result"].append(made["result"][0]), "answered twice"),
        (lambda made: made.update(was_cancelled=True), "all were skipped"),
        (lambda made: made.pop("completed_by"), "who made it"),
    ],
)
def test_missing_and_strange_answers_are_bad_records(tmp_path, spoil, says):
    label_studio_tasks.export([example("text")], tmp_path)
    _, (task,) = only(tmp_path)
    made = annotated(task, ANN, 1)
    spoil(made)
    with pytest.raises(BadRecord, match=says):
        label_studio.read({**task, "annotations": [made]}, "")


@pytest.mark.parametrize(
    "row,says",
    [
        ({"data": {"text": "x"}, "annotations": []}, "alanything: missing"),
        ({"data": {"alanything": {}}, "annotations": []}, "changed since the export"),
        ({"data": {"alanything": 3}, "annotations": []}, "changed since the export"),
        ({"annotations": []}, "missing"),
    ],
)
def test_other_peoples_tasks_are_bad_records(row, says):
    with pytest.raises(BadRecord, match=says):
        label_studio.read(row, "")


def test_nobody_or_twice_the_same(tmp_path):
    label_studio_tasks.export([example("text")], tmp_path)
    _, (task,) = only(tmp_path)
    made = annotated(task, ANN, 1)
    for annotations, says in (
        ([], "there are none"),
        ([made, made], "ann@x.org has two"),
        ([7], "expected an object"),
    ):
        with pytest.raises(BadRecord, match=says):
            label_studio.read({**task, "annotations": annotations}, "")


def test_what_cannot_be_shown_is_left_out_by_name(tmp_path):
    good, three = example("image", "good"), example("text", "three")
    three = dataclasses.replace(three, responses=(*three.responses, three.responses[0]))
    whole = media.dump("image", np.zeros((8, 8, 3), np.uint8))
    cut = Response((Message("assistant", (Part("image", data=whole[:30]),)),))
    broken = dataclasses.replace(good, id="broken", responses=(cut, cut))
    array = Part("image", data=np.zeros((2, 2, 3), np.uint8))
    arrays = Response((Message("assistant", (array,)),))
    raw = dataclasses.replace(good, id="arrays", responses=(arrays, arrays))
    done = label_studio_tasks.export([good, three, broken, raw], tmp_path)
    assert sum(done.folders.values()) == 2
    assert [id for id, _ in done.aside] == ["three", "broken"]
    assert "2 are compared, there are 3" in done.aside[0][1]
    with pytest.raises(ValueError, match="no example can be shown"):
        label_studio_tasks.export([three], tmp_path / "none")


def test_restore_stays_in_its_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "media").mkdir()
    part = Part("image", uri="media/../secret")
    bad = Example("x", (Message("user", (part,)),))
    with pytest.raises(BadRecord, match="no such file"):
        label_studio_tasks.restore(bad, tmp_path / "media")
