"""A few made-up records of each kind, of the playground; for tries without data."""

from __future__ import annotations

from alanything_jax.evaluation.eval_anything.amg import Votes
from alanything_jax.evaluation.eval_anything.amu import Item, Reference
from alanything_jax.evaluation.eval_anything.following import Choice, Instruction
from alanything_jax.evaluation.eval_anything.scores import DIMENSIONS
from alanything_jax.playground import tasks
from alanything_jax.schema import Modality

COUNT = 8
_MAKE = {"text": "choose", "image": "t2i", "audio": "t2a", "video": "t2v"}


def items() -> list[Item]:
    """Questions over a picture and a tune."""
    seen, heard = (tasks.prompts("test", COUNT, 7, (task,)) for task in ("i2t", "a2t"))
    facts = Reference("a picture and a tune", ("picture",), ("tune",))
    pairs = zip(seen, heard, strict=True)
    media = [[p for e in pair for p in e.prompt[-1].parts] for pair in pairs]
    media = [tuple(p for p in parts if p.kind != "text") for parts in media]
    asked = "tell me what you see and hear"
    return [
        Item(str(n), asked, parts, DIMENSIONS[n % len(DIMENSIONS)], (facts,))
        for n, parts in enumerate(media)
    ]


def instructions(kind: Modality) -> list[Instruction]:
    """What to make; of sounds and clips with a question about it."""
    choice = Choice("q", "is it there ?", "A. it is\nB. it is not", "A")
    choices = (choice,) if kind in ("audio", "video") else ()
    made = tasks.prompts("test", COUNT, 8, (_MAKE[kind],))
    return [Instruction(e.id, kind, e.prompt[-1].text, choices) for e in made]


def votes() -> list[Votes]:
    """Instructions, and made-up votes on how to answer them."""
    made = tasks.prompts("test", COUNT, 9, ("choose",))
    shares = {"t": 10, "i": 9, "ti": 6}
    return [Votes(e.id, e.prompt[-1].text, shares) for e in made]
