"""Masks over real chat templates, by hand: content and end of turn, nothing else.

The Llama-3 and Qwen3 templates are the files TRL ships beside its own code.
"""

from pathlib import Path

import numpy as np
import pytest
import trl

from alanything_jax.data.byte_tokenizer import CHATML, byte_tokenizer
from alanything_jax.data.template import TemplateError, render
from alanything_jax.schema import Message, Part

PEER = Path(trl.__file__).parent / "chat_templates"


def tokenizer(name):
    if name == "chatml":
        return byte_tokenizer(CHATML)
    made = byte_tokenizer((PEER / f"{name}.jinja").read_text())
    made.bos_token = "<|endoftext|>"
    return made


def talk(*turns):
    roles = ("user", "assistant") * len(turns)
    return [
        Message(role, (Part("text", text=said),))
        for role, said in zip(roles, turns, strict=False)
    ]


def pieces(rendered, tok):
    """The text of each scored stretch."""
    edges = np.flatnonzero(np.diff(np.pad(rendered.scored.astype(int), 1)))
    return [
        tok.decode(rendered.tokens[a:b])
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


ENDINGS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "qwen3": "<|im_end|>"}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_assistant_turn_is_scored(name):
    tok = tokenizer(name)
    out = render(tok, talk("hi?", "yo", "and?", "no more"))
    end, turns = ENDINGS[name], pieces(out, tok)
    assert [turn.removeprefix("<think>\n\n</think>\n\n") for turn in turns] == [
        f"yo{end}",
        f"no more{end}",
    ]
    # A header is before the first scored token, right up to it.
    assert out.first_header == np.flatnonzero(out.scored)[0]
    assert out.last_header > out.first_header


@pytest.mark.parametrize("name", ENDINGS)
def test_history_before_score_from_is_not_scored(name):
    tok = tokenizer(name)
    out = render(tok, talk("hi?", "yo", "and?", "no"), score_from=3)
    (only,) = pieces(out, tok)
    assert only.removeprefix("<think>\n\n</think>\n\n") == f"no{ENDINGS[name]}"


@pytest.mark.parametrize("name", ["llama3_training", "qwen3_training"])
def test_generation_tags_decide(name):
    """With `{% generation %}` the template's own marks are the mask."""
    tok = tokenizer(name)
    chat = [
        {"role": "user", "content": "hi?"},
        {"role": "assistant", "content": "yo"},
    ]
    out = render(tok, talk("hi?", "yo"))
    theirs = tok.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert out.tokens.tolist() == list(np.ravel(theirs["input_ids"]))
    assert out.scored.tolist() == [bool(m) for m in np.ravel(theirs["assistant_masks"])]
    assert "yo" in "".join(pieces(out, tok))


def test_tokens_are_the_templates_own():
    tok = tokenizer("chatml")
    out = render(tok, talk("hé", "ja"))
    text = "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\nja<|im_end|>\n"
    assert tok.decode(out.tokens) == text
    assert out.tokens.tolist() == tok(text, add_special_tokens=False)["input_ids"]
    assert tok.decode(out.tokens[out.scored]) == "ja<|im_end|>"


def test_no_chat_template_says_what_to_do():
    with pytest.raises(
        TemplateError, match=r"'bytes' has no chat template.*data.chat=False"
    ):
        render(byte_tokenizer(None), talk("hi", "yo"))


def test_media_parts_are_refused_by_name():
    said = [Message("user", (Part("image", uri="x.png"),)), *talk("hi", "yo")[1:]]
    with pytest.raises(TemplateError, match="user message holds image.*text only"):
        render(tokenizer("chatml"), said)


def test_a_template_that_rewrites_history_is_refused():
    template = (
        "{{ messages|length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(TemplateError, match="rewrites what comes before message 1"):
        render(byte_tokenizer(template), talk("hi", "yo", "a", "b"))
