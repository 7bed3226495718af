"""The oracle's figures by hand, and critiques that are true."""

import numpy as np
import pytest

from alanything_jax.playground import oracle, tasks
from alanything_jax.playground.lexicon import DIMENSIONS, words
from alanything_jax.playground.marks import Mark, mark
from alanything_jax.schema import Example, Message, Part, Response

RED_CIRCLE, RED_SQUARE, BLUE_SQUARE = 1, 2, 8


def goal(media=(), text=None, keep=None):
    said = {"task": "hand", "media": dict(media), "text": text, "keep": keep}
    prompt = (Message("user", (Part("text", text="?"),)),)
    return Example("hand", prompt, extra={"goal": said})


def judged(example, *parts):
    return oracle.score(example, Response((Message("assistant", parts),)))


def picture(**cells):
    """Cells by name of row and column: a1=RED_CIRCLE is the top left one."""
    grid = np.zeros((4, 4), np.int32)
    for name, code in cells.items():
        grid["abcd".index(name[0]), int(name[1]) - 1] = code
    return oracle.part("image", grid.reshape(-1))


def tune(*codes):
    return oracle.part("audio", np.array(codes))


def clip(*cells):
    """A clip with one code 1 a frame, at these (row, column)."""
    frames = np.zeros((3, 3, 3), np.int32)
    for frame, cell in enumerate(cells):
        frames[frame][cell] = 1
    return oracle.part("video", frames.reshape(-1))


def text(said):
    return Part("text", text=said)


def check(verdict, overall, object=1.0, number=1.0, place=1.0, kind=1.0):
    assert verdict.overall == pytest.approx(overall)
    wanted = {"kind": kind, "object": object, "number": number, "place": place}
    assert verdict.dimensions == pytest.approx(wanted)


TWO_CIRCLES = goal({"image": "two red circles left"})


def test_a_picture():
    good = judged(TWO_CIRCLES, picture(a1=RED_CIRCLE, d1=RED_CIRCLE))
    check(good, 1.0)
    assert good.good and oracle.critique(good) == (
        "shows two red circles left . wanted two red circle left . verdict good ."
    )
    three = judged(TWO_CIRCLES, picture(a1=RED_CIRCLE, b1=RED_CIRCLE, c1=RED_CIRCLE))
    check(three, 2.5 / 3, number=0.5)
    assert oracle.critique(three) == (
        "shows three red circles left . "
        "wanted two but three red circle left . verdict bad ."
    )
    assert oracle.critique(three, "number") == (
        "shows three red circles left . wanted two but three . number bad ."
    )
    assert oracle.critique(three, "object") == (
        "shows three red circles left . wanted red circle . object good ."
    )
    aside = judged(TWO_CIRCLES, picture(a1=RED_CIRCLE, a3=RED_CIRCLE))
    check(aside, 2.5 / 3, place=0.5)
    extra = judged(TWO_CIRCLES, picture(a1=RED_CIRCLE, b1=RED_CIRCLE, d4=RED_SQUARE))
    check(extra, 2.5 / 3, object=0.5)
    assert oracle.critique(extra) == (
        "shows two red circles left and one red square right . "
        "wanted two red circle left extra . verdict bad ."
    )
    empty = judged(TWO_CIRCLES, picture())
    check(empty, 0.0, object=0, number=0, place=0)
    assert (
        oracle.critique(empty) == "shows nothing . wanted two missing . verdict bad ."
    )


def test_a_relation():
    example = goal({"image": "one red circle above one blue square"})
    check(judged(example, picture(a2=RED_CIRCLE, c2=BLUE_SQUARE)), 1.0)
    below = judged(example, picture(c2=RED_CIRCLE, a2=BLUE_SQUARE))
    check(below, 2 / 3, place=0.0)


def test_a_tune():
    example = goal({"audio": "two short notes up from do"})
    check(judged(example, tune(6, 8)), 1.0)
    # The second note is long: half of the durations.
    check(judged(example, tune(6, 9)), 2.75 / 3, object=0.75)
    # One step too high: half a point for the start.
    high = judged(example, tune(8, 10))
    check(high, 2.75 / 3, object=0.75)
    down = judged(example, tune(6, 4))
    check(down, 2 / 3, place=0.0)
    assert oracle.critique(down) == (
        "shows two short notes down from do . "
        "wanted two short up but down do . verdict bad ."
    )
    three = judged(example, tune(6, 8, 10))
    check(three, 2.5 / 3, number=0.5)


def test_a_tune_of_two_phrases_is_cut_where_it_fits_best():
    example = goal(
        {"audio": "two short notes up from do then two long notes same from so"}
    )
    check(judged(example, tune(6, 8, 15, 15)), 1.0)
    half = judged(example, tune(6, 8))
    # Marks of both phrases: object 1, 1, 0; number 1, 0; place 1, 0.
    check(half, (2 / 3 + 0.5 + 0.5) / 3, object=2 / 3, number=0.5, place=0.5)


def test_a_clip():
    example = goal({"video": "red circle moves right outer"})
    check(judged(example, clip((0, 0), (0, 1), (0, 2))), 1.0)
    lower = judged(example, clip((1, 0), (1, 1), (1, 2)))
    check(lower, 2.5 / 3, place=0.5)
    assert oracle.critique(lower, "place") == (
        "shows red circle moves right middle . "
        "wanted right outer but middle . place bad ."
    )
    back = judged(example, clip((0, 2), (0, 1), (0, 0)))
    # In the middle frame it is where it should be.
    check(back, (2 + (1 + 1 / 3) / 2) / 3, place=(1 + 1 / 3) / 2)
    gone = judged(example, clip((0, 0), (0, 1)))
    check(gone, (2 + 2 / 3) / 3, number=2 / 3)
    still = goal({"video": "red circle moves right outer turning blue"})
    unturned = judged(still, clip((0, 0), (0, 1), (0, 2)))
    # In the last frame there is no blue circle where one should be.
    check(unturned, (0.5 + 2 / 3 + 1) / 3, object=0.5, number=2 / 3)


def test_descriptions():
    example = goal(text=("image", "two red circles left"))
    check(judged(example, text("two red circles left")), 1.0)
    one = judged(example, text("one red circle left"))
    check(one, 2 / 3, number=0.0)
    assert oracle.critique(one) == (
        "shows two red circles left . said one but two red circle left . verdict bad ."
    )
    check(judged(example, text("two blue circles left")), 2.5 / 3, object=0.5)
    check(judged(example, text("two red circles top")), 2 / 3, place=0.0)
    more = judged(example, text("two red circles left and one blue square top"))
    check(more, 2.5 / 3, object=0.5)
    example = goal(text=("audio", "two short notes up from do"))
    check(judged(example, text("two short notes up from do")), 1.0)
    long = judged(example, text("two long notes up from do"))
    check(long, 2.5 / 3, object=0.5)
    example = goal(text=("video", "red circle moves right outer"))
    check(judged(example, text("red circle moves right outer")), 1.0)
    left = judged(example, text("red circle moves left outer"))
    check(left, 2.5 / 3, place=0.5)
    silent = judged(example)
    check(silent, 0.0, object=0, number=0, place=0, kind=0)


def test_both_ways_to_say_a_relation_are_right():
    example = goal(text=("image", "one red circle above one blue square"))
    check(judged(example, text("one blue square below one red circle")), 1.0)
    check(judged(example, text("one blue square above one red circle")), 2 / 3, place=0)


def test_kinds():
    good = picture(a1=RED_CIRCLE, d1=RED_CIRCLE)
    wrong = judged(TWO_CIRCLES, tune(6, 8))
    check(wrong, 0.0, object=0, number=0, place=0, kind=0)
    both = judged(TWO_CIRCLES, good, tune(6, 8))
    check(both, 0.5, kind=0.5)
    assert oracle.critique(both, "kind") == (
        "shows two red circles left . shows two short notes up from do . kind bad ."
    )
    assert not both.good
    # A second picture is one too many, wherever it stands and whatever it shows.
    twice = judged(TWO_CIRCLES, good, picture())
    check(twice, 0.5, kind=0.5)
    two = goal({"image": "two red circles left", "audio": "two short notes up from do"})
    check(judged(two, good, tune(6, 8)), 1.0)
    half = judged(two, good)
    check(half, 0.5, kind=0.5)


def test_an_edit_keeps_what_was_not_to_change():
    kept = picture(a1=RED_CIRCLE, d1=RED_CIRCLE)
    keep = oracle.CODEC["image"].encode({}, kept.data).tolist()
    example = goal(
        {"image": "two red circles left"}, ("image", "two red circles left"), keep
    )
    said = text("two red circles left")
    check(judged(example, said, kept), 1.0)
    moved = judged(example, said, picture(b1=RED_CIRCLE, d1=RED_CIRCLE))
    # 14 of 16 cells; the picture's place is the mean with its region's, and all of it
    # with the description's.
    picture_place = (1 + 14 / 16) / 2
    assert moved.overall == pytest.approx((1 + (2 + picture_place) / 3) / 2)


def test_broken_media_count_as_missing_and_are_named():
    broken = judged(TWO_CIRCLES, Part("image", data=b"\x89PNG"))
    assert broken.overall == 0
    (why,) = broken.broken
    assert why.startswith("image: the image cannot be decoded")
    foreign = judged(TWO_CIRCLES, Part("image", data=np.zeros((64, 64, 3), np.uint8)))
    assert "differs from every painted one" in foreign.broken[0]
    silent = goal({"audio": "two short notes up from do"})
    assert judged(silent, Part("audio", data=np.zeros(1200, np.float32))).broken


def test_only_the_playgrounds_prompts_have_a_goal():
    with pytest.raises(ValueError, match="record x has no goal"):
        oracle.score(Example("x", ()), Response(()))


def test_what_a_critique_says():
    assert oracle.says_good("verdict good .") is True
    assert oracle.says_good("shows nothing . verdict bad .") is False
    assert oracle.says_good("number good .", "number") is True
    assert oracle.says_good("number good .") is None
    for said in ("", "verdict", "verdict fine .", "good ."):
        assert oracle.says_good(said) is None
    assert mark("object", 1.2) == Mark("object", 1.0)
    assert mark("object", -1) == Mark("object", 0.0)


def test_critiques_are_true():
    """A verdict is the score's, and what is said to be otherwise is otherwise."""
    known = set(words()) | {"."}
    bad = 0
    for example in tasks.attempts(240, seed=5):
        verdict = oracle.score(example, example.responses[0])
        for critique in example.feedback.critiques:
            name, said = critique.dimension, critique.text
            score = verdict.overall if name is None else verdict.dimensions[name]
            assert oracle.says_good(said, name) == (score >= 1)
            assert set(said.split()) <= known
            blames = set(said.split()) & {"but", "missing", "extra"}
            if name is None:
                assert bool(blames) == (score < 1), said
                bad += score < 1
            elif score >= 1:
                assert not blames, said
        for rating in example.feedback.ratings:
            wanted = 3 * verdict.dimensions[rating.dimension]
            assert rating.score == pytest.approx(wanted, abs=1e-4)
        assert {r.dimension for r in example.feedback.ratings} == set(DIMENSIONS)
    assert 60 < bad < 220


@pytest.mark.parametrize("kind", oracle.WORLDS)
def test_what_is_seen_is_what_was_said(kind):
    world, rng = oracle.WORLDS[kind], np.random.default_rng(3)
    for _ in range(300):
        spec = world.sample(rng)
        assert world.see(world.realise(spec, rng)) == world.say(spec)
    # And no medium, however odd, is beyond words.
    for _ in range(300):
        size = oracle.CODEC[kind].length
        codes = rng.integers(oracle.CODEC[kind].size, size=size)
        assert set(world.see(codes).split()) <= set(words())
