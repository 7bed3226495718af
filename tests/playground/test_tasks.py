"""Prompts that are new in a test, people of known skill, pairs and lessons."""

import collections
import string

import numpy as np
import pytest

from alanything_jax.data import store, views
from alanything_jax.playground import lexicon, oracle, source, tasks
from alanything_jax.playground.oracle import WORLDS

MAGIC = {"image": b"\x89PNG", "audio": b"RIFF", "video": b"GIF8"}


def specifications(example):
    """(kind, specification) of everything a prompt asks for."""
    goal = example.extra["goal"]
    said = list(goal["media"].items()) + ([goal["text"]] if goal["text"] else [])
    return [(kind, WORLDS[kind].read(words)) for kind, words in said]


def json_of(examples):
    return [store.to_json(example) for example in examples]


def parts_of(example):
    responses = [*example.responses]
    responses += [c.refinement for c in example.feedback.critiques if c.refinement]
    messages = [*example.prompt, *(m for r in responses for m in r.messages)]
    return [part for message in messages for part in message.parts]


def test_every_task_asks_as_it_should():
    tokenizer = lexicon.tokenizer()
    shapes = {
        "t2i": (["text"], {"image"}),
        "t2a": (["text"], {"audio"}),
        "t2v": (["text"], {"video"}),
        "i2t": (["text", "image"], {"text"}),
        "a2t": (["text", "audio"], {"text"}),
        "v2t": (["text", "video"], {"text"}),
        "ti2ti": (["text", "image"], {"text", "image"}),
    }
    seen = collections.Counter()
    for example in tasks.prompts("train", 160, 1):
        goal, (message,) = example.extra["goal"], example.prompt
        seen[goal["task"]] += 1
        wanted = {*goal["media"], *(["text"] if goal["text"] else [])}
        kinds = [part.kind for part in message.parts]
        if goal["task"] == "choose":
            assert kinds == ["text"] and message.text.startswith("i want to ")
            senses = {"see": "image", "hear": "audio", "watch": "video"}
            assert {senses[w] for w in message.text.split() if w in senses} == wanted
        else:
            assert (kinds, wanted) == shapes[goal["task"]]
        ids = tokenizer(message.text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
    assert seen == dict.fromkeys(tasks.TASKS, 20)


def test_right_answers_score_one_in_every_task():
    rng = np.random.default_rng(0)
    for example in tasks.prompts("train", 80, 2):
        right = tasks.answer(example, rng)
        assert oracle.score(example, right).good
        files = tasks.answer(example, rng, files=True)
        assert oracle.score(example, files).good
        media = [p for m in files.messages for p in m.parts if p.kind != "text"]
        assert all(part.data.startswith(MAGIC[part.kind]) for part in media)
        unable = tasks.answer(example, rng, changes=1)
        assert oracle.score(example, unable).overall <= 1


def test_an_edit_changes_one_look_and_nothing_else():
    for example in tasks.prompts("train", 30, 3, ("ti2ti",)):
        shown = example.prompt[0].parts[1]
        before = oracle.CODEC["image"].encode({}, shown.data)
        keep = np.array(example.extra["goal"]["keep"])
        old, new = before[before != keep], keep[before != keep]
        assert len(set(old)) == 1 and len(set(new)) == 1
        assert set(new) & set(before) == set()
        kind, scene = specifications(example)[0]
        assert all(m.score == 1 for m in WORLDS[kind].judge(scene, keep))


def test_splits_share_no_combination_in_any_task():
    keys = {}
    for split in ("train", "tune", "test"):
        keys[split] = {
            WORLDS[kind].key(spec)
            for example in tasks.prompts(split, 1600, 0)
            for kind, spec in specifications(example)
        }
        assert {tasks.split_of(key) for key in keys[split]} == {split}
    assert not keys["train"] & keys["test"] and not keys["tune"] & keys["test"]
    assert not keys["train"] & keys["tune"]
    assert len(keys["test"]) > 200


def test_what_an_edit_shows_is_of_its_split_too():
    for example in tasks.prompts("test", 20, 4, ("ti2ti",)):
        shown = oracle.CODEC["image"].encode({}, example.prompt[0].parts[1].data)
        (_, after), _ = specifications(example)
        # The scene before is the one after with the look that the prompt names.
        looks = {code for code in shown if code}
        old = next(c for c in looks if c not in example.extra["goal"]["keep"])
        items = [
            i
            if WORLDS["image"].code(i) in looks
            else type(i)(
                i.number,
                WORLDS["image"].COLOUR_NAMES[(old - 1) // 3],
                WORLDS["image"].SHAPES[(old - 1) % 3],
                i.region,
            )
            for i in after.items
        ]
        before = type(after)(tuple(items))
        assert tasks.split_of(WORLDS["image"].key(before)) == "test"


def test_a_tenth_of_the_combinations_is_for_tests():
    splits = collections.Counter(tasks.split_of(f"key {n}") for n in range(5000))
    assert abs(splits["test"] - 500) < 100 and abs(splits["tune"] - 500) < 100


def test_prompts_are_a_function_of_split_seed_and_count():
    one = json_of(tasks.prompts("train", 16, 5))
    assert one == json_of(tasks.prompts("train", 32, 5)[:16])
    assert one != json_of(tasks.prompts("train", 16, 6))
    assert one != json_of(tasks.prompts("test", 16, 5))


def test_demonstrations_are_deterministic_and_of_mixed_skill():
    some = list(tasks.demonstrations(240, 0))
    assert json_of(some) == json_of(tasks.demonstrations(240, 0))
    assert json_of(some[:8]) != json_of(tasks.demonstrations(8, 1))
    good = sum(oracle.score(e, e.responses[0]).good for e in some)
    # Half are right on purpose; a careless or biased one is right now and then.
    assert 0.45 < good / len(some) < 0.8


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_the_annotator_errs_as_often_as_told_and_pairs_are_never_tied(error):
    count = 320 if error == 0.3 else 40
    wrong = 0
    for example in tasks.pairs(count, 7, error):
        scores = [oracle.score(example, r).overall for r in example.responses]
        assert scores[0] != scores[1]
        wrong += scores[example.feedback.chosen] < max(scores)
        assert example.feedback.rater == f"annotator with error rate {error}"
    spread = 4 * np.sqrt(count * error * (1 - error))
    assert abs(wrong - count * error) <= spread


def test_pairs_have_feedback_on_both_sides_and_right_refinements():
    for example in tasks.pairs(24, 1):
        overall = [c for c in example.feedback.critiques if c.dimension is None]
        assert [c.response for c in overall] == [0, 1]
        for critique in overall:
            assert oracle.score(example, critique.refinement).good
        assert len(example.feedback.ratings) == 2 * len(lexicon.DIMENSIONS)


def test_files_are_real_and_score_the_same():
    plain, files = (
        list(tasks.pairs(32, 2, 0.1)),
        list(tasks.pairs(32, 2, 0.1, files=True)),
    )
    seen = set()
    for one, other in zip(plain, files, strict=True):
        for part in parts_of(other):
            if part.kind != "text":
                assert part.data.startswith(MAGIC[part.kind])
                seen.add(part.kind)
        assert [p.kind for p in parts_of(one)] == [p.kind for p in parts_of(other)]
        for a, b in zip(one.responses, other.responses, strict=True):
            assert oracle.score(one, a) == oracle.score(other, b)
        assert one.feedback.chosen == other.feedback.chosen
        texts = [[c.text for c in e.feedback.critiques] for e in (one, other)]
        assert texts[0] == texts[1]
        for critique in other.feedback.critiques:
            if critique.refinement is not None:
                assert oracle.score(other, critique.refinement).good
    assert seen == set(MAGIC)


def test_lessons_are_answers_critiques_and_refinements():
    some = list(source.examples("playground:lessons/800/3"))
    assert json_of(some[:20]) == json_of(source.lessons(800, 3))[:20]
    words = views.templates("playground")

    def kind(example):
        asked = example.prompt[-1].text
        checks = [
            string.Template(words.check).safe_substitute(dimension=d)
            for d in lexicon.DIMENSIONS
        ]
        if asked in (words.critique, *checks):
            return "critiques"
        return "refinements" if "verdict " in asked else "answers"

    kinds = collections.Counter(map(kind, some))
    for name, share in {"answers": 0.45, "critiques": 0.2, "refinements": 0.35}.items():
        assert abs(kinds[name] / 800 - share) < 4 * np.sqrt(share * (1 - share) / 800)
    critiques = [e for e in some if kind(e) == "critiques"]
    overall = [e for e in critiques if e.prompt[-1].text == words.critique]
    assert 0.35 < len(overall) / len(critiques) < 0.65
    tokenizer, bad = lexicon.tokenizer(), 0
    for example in some:
        assert len(example.responses) == 1
        said = [*example.prompt, *example.responses[0].messages]
        ids = tokenizer(" ".join(message.text for message in said))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        if kind(example) == "refinements":
            # Now and then two mistakes undo each other.
            bad += "verdict bad " in example.prompt[-1].text
            assert oracle.score(example, example.responses[0]).good
        if example in overall:
            said = example.responses[0].messages[0].text
            assert oracle.says_good(said) is not None
    assert bad > 0.95 * kinds["refinements"]


def test_paths():
    assert len(list(source.examples("playground:pairs/3/1/0.5"))) == 3
    assert json_of(source.examples("playground:attempts/2")) == json_of(
        tasks.attempts(2)
    )
    test = list(source.examples("playground:pairs/9/1/0/test"))
    assert json_of(test) == json_of(tasks.pairs(9, 1, 0.0, "test"))
    for path in (
        "playground:",
        "playground:songs/3",
        "playground:pairs/many",
        "playground:pairs/3/1/0/dev",
    ):
        with pytest.raises(ValueError, match="write playground:NAME/COUNT"):
            source.examples(path)
