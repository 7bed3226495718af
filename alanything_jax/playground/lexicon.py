"""The playground's words, its tokenizer of one token a word, and its exact codecs."""

from __future__ import annotations

from typing import Any

from alanything_jax.models.codecs.notes import Notes
from alanything_jax.models.codecs.palette import COLOURS, SHAPES, Palette

NUMBERS = ("one", "two", "three", "four")
REGIONS = ("left", "right", "top", "bottom")
RELATIONS = ("above", "below", "leftof", "rightof")
STARTS = ("do", "re", "mi", "fa", "so", "la", "ti", "highdo")
SLOPES = ("up", "down", "same")
DURATIONS = ("short", "long")
DIRECTIONS = ("left", "right", "up", "down")
LANES = ("outer", "middle", "inner")
PLURALS = tuple(shape + "s" for shape in SHAPES)
DIMENSIONS = ("kind", "object", "number", "place")

_WORDS = """
a an the and then with from to of in is are it this that there now , . : ? !
draw paint sketch picture show me describe tell what you see hear watch play compose tune
notes note animate clip make moves turning change move remove add i want would like
both please done phrase missing extra wrong not no should be starts said
verdict good bad critique check improve answer again fix better which first second
use feedback text image audio video compare many turns shows nothing wanted but
"""

PICTURE = Palette("image", 4, 4, 1)
CLIP = Palette("video", 3, 3, 3)
TUNE = Notes(length=8)
CODECS = (PICTURE, TUNE, CLIP)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def words() -> list[str]:
    """Every word, once, in a fixed order."""
    sets = (NUMBERS, REGIONS, RELATIONS, STARTS, SLOPES, DURATIONS, DIRECTIONS, LANES)
    listed = [word for some in sets for word in some]
    listed += [*COLOURS, *SHAPES, *PLURALS, *DIMENSIONS, *_WORDS.split()]
    return list(dict.fromkeys(listed))


def tokenizer() -> Any:
    """A `PreTrainedTokenizerFast` with one token a word; unknown words become <|unk|>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: n for n, word in enumerate([*_SPECIALS, "<|unk|>", *words()])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(_SPECIALS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
        name_or_path="playground",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
