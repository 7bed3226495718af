"""Three worlds, one exam: words, media and marks of a specification agree."""

import dataclasses

import numpy as np
import pytest

from alanything_jax.data import media
from alanything_jax.playground import clips, lexicon, oracle, pictures, tunes
from alanything_jax.playground.clips import Clip, Mover
from alanything_jax.playground.marks import by_dimension, match
from alanything_jax.playground.pictures import Item, Scene
from alanything_jax.playground.tunes import Phrase, Tune

WORLDS = pytest.mark.parametrize("world", oracle.WORLDS.values(), ids=oracle.WORLDS)
DIMENSION = {
    **dict.fromkeys(["colour", "shape", "turning", "duration", "start"], "object"),
    "number": "number",
    **dict.fromkeys(["region", "relation", "direction", "lane", "slope"], "place"),
}


def sampled(world, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng, [world.sample(rng) for _ in range(count)]


def flat(spec):
    """{(part, field): value} of a specification."""
    out = {}
    for field, value in vars(spec).items():
        if not isinstance(value, tuple):
            out[field, field] = value
            continue
        for n, part in enumerate(value):
            out |= {(n, name): said for name, said in vars(part).items()}
    return out


@WORLDS
def test_words_say_all_and_are_known(world):
    known, kinds = set(lexicon.words()), set()
    for spec in sampled(world, 400)[1]:
        said = world.say(spec)
        assert world.read(said) == spec
        assert set(said.split()) <= known
        kinds.add(len(next(iter(vars(spec).values()))))
    assert kinds == ({1, 2} if world is clips else {1, 2, 3})


def test_words_by_hand():
    scene = Scene((Item(2, "red", "circle", "left"), Item(1, "blue", "square", "top")))
    assert pictures.say(scene) == "two red circles left and one blue square top"
    related = Scene((Item(1, "red", "circle"), Item(1, "blue", "square")), "above")
    assert pictures.say(related) == "one red circle above one blue square"
    tune = Tune((Phrase(3, "short", "up", "do"), Phrase(2, "long", "same", "so")))
    assert tunes.say(tune) == (
        "three short notes up from do then two long notes same from so"
    )
    clip = Clip((Mover("red", "circle", "right", "outer", "blue"),))
    assert clips.say(clip) == "red circle moves right outer turning blue"
    # What a text does not say is None.
    assert pictures.read("red") == Scene((Item(None, "red", None, None),))
    assert tunes.read("notes up") == Tune((Phrase(None, None, "up", None),))
    assert clips.read("moves left") == Clip((Mover(None, None, "left", None),))


def test_media_by_hand():
    tune = Tune((Phrase(3, "short", "up", "do"), Phrase(2, "long", "same", "re")))
    assert tunes.realise(tune).tolist() == [6, 8, 10, 9, 9]
    clip = Clip((Mover("red", "circle", "left", "middle", "green"),))
    frames = clips.realise(clip).reshape(3, 3, 3)
    assert [np.argwhere(f).tolist() for f in frames] == [[[1, 2]], [[1, 1]], [[1, 0]]]
    # Code 1 is a red circle, 4 a green one.
    assert frames.max(axis=(1, 2)).tolist() == [1, 1, 4]
    scene = Scene((Item(3, "blue", "square", "bottom"),))
    grid = pictures.realise(scene, np.random.default_rng(0)).reshape(4, 4)
    assert (grid[3] == 8).sum() == 3 and not grid[:3].any()


@WORLDS
def test_what_is_made_scores_one_and_survives_its_file(world):
    rng, specs = sampled(world, 150, 1)
    for n, spec in enumerate(specs):
        codes = world.realise(spec, rng)
        assert all(mark.score == 1 for mark in world.judge(spec, codes))
        assert all(mark.score == 1 for mark in world.compare(spec, spec))
        if n < 25:
            for files in (False, True):
                array, _ = media.load(oracle.part(world.KIND, codes, files))
                back = oracle.CODEC[world.KIND].encode({}, array)
                assert back.tolist() == codes.tolist()


@WORLDS
def test_every_change_is_noticed_in_its_dimension(world):
    rng, specs = sampled(world, 400, 2)
    fields = set()
    for spec in specs:
        other = world.change(spec, rng)
        before, after = flat(spec), flat(other)
        changed = [key for key in before if before[key] != after[key]][0]
        field = changed[1]
        fields.add(field)
        said = by_dimension(world.compare(spec, other))
        assert {name for name, score in said.items() if score < 1} == {DIMENSION[field]}
        shown = by_dimension(world.judge(spec, world.realise(other, rng)))
        if field == "region":
            # A corner is at two edges.
            opposite = {before[changed], after[changed]}
            if opposite not in ({"left", "right"}, {"top", "bottom"}):
                continue
        assert min(shown.values()) < 1
        if world is not tunes:
            # Where phrases meet is not heard, so that a note more may be blamed otherwise.
            assert shown[DIMENSION[field]] < 1
    expected = {
        "image": {"number", "colour", "shape", "region", "relation"},
        "audio": {"number", "duration", "slope", "start"},
        "video": {"colour", "shape", "direction", "lane", "turning"},
    }
    assert fields == expected[world.KIND]


def test_a_tune_of_one_phrase_is_blamed_in_the_right_dimension():
    rng = np.random.default_rng(0)
    for _ in range(100):
        tune = tunes.sample(rng, 1)
        other = tunes.change(tune, rng)
        before, after = flat(tune), flat(other)
        (field,) = [k[1] for k in before if before[k] != after[k]]
        shown = by_dimension(tunes.judge(tune, tunes.realise(other)))
        assert {n for n, score in shown.items() if score < 1} == {DIMENSION[field]}


@WORLDS
def test_a_habit_is_fixed_and_mostly_wrong(world):
    _, specs = sampled(world, 200, 3)
    habits = [world.bias(spec) for spec in specs]
    assert habits == [world.bias(spec) for spec in specs]
    wrong = sum(habit != spec for spec, habit in zip(specs, habits))
    assert 80 < wrong < 200
    # Once given in to, a habit changes nothing more.
    again = [world.bias(habit) for habit in habits]
    assert sum(a != b for a, b in zip(again, habits)) == 0


@WORLDS
def test_tens_of_thousands_of_specifications(world):
    """Of three things; clips have two at most, and 19,000 of them."""
    rng, parts = np.random.default_rng(0), 2 if world is clips else 3
    count = 60_000 if world is clips else 24_000
    assert len({world.say(world.sample(rng, parts)) for _ in range(count)}) > 16_000


def test_movers_never_share_a_cell_or_a_look():
    rng, specs = sampled(clips, 300, 4)
    for clip in specs:
        codes = clips.realise(clip).reshape(3, -1)
        assert (codes > 0).sum(axis=1).tolist() == [len(clip.movers)] * 3
        looks = [{clips.code(m, f) for f in range(3)} for m in clip.movers]
        assert len(set.union(*looks)) == sum(map(len, looks))


def test_match_takes_the_best_assignment():
    def near(a, b):
        return 10 - abs(a - b)

    assert match([1, 5], [6, 2], near) == [2, 6]
    assert match([1, 5], [5], near) == [None, 5]
    assert match([1], [], near) == [None]
    assert match([3], [9, 4], near) == [4]


def test_specifications_are_values():
    one = Scene((Item(1, "red", "circle", "left"),))
    assert one == dataclasses.replace(one) and hash(one) == hash(
        dataclasses.replace(one)
    )
