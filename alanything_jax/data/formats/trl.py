"""TRL's row layouts: preference, prompt-completion, KTO-labelled, conversational.

    {"prompt": P, "chosen": C, "rejected": R}     pair; P may be left implicit
    {"prompt": P, "completion": C}                SFT
    {"prompt": P, "completion": C, "label": bool} KTO
    {"messages": [...]}                           SFT on a whole conversation
    {"prompt": P}                                 a prompt to be answered
P, C, R are strings or lists of {"role", "content"}. `score_chosen - score_rejected`
is the margin where both are there. Media may stand in the columns `image(s)`, `audio(s)`,
`video(s)`, and {"type": "image"}, or `<image>` in a text, where they belong: see
`media_columns`. That is LLaMA-Factory's layout too, where it has `messages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import common, media_columns
from alanything_jax.schema import Example, Feedback, Response


def claims(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these layouts."""
    pair, single = {"chosen", "rejected"} <= set(row), "completion" in row
    # With more in it, a row's answers would have names that nobody here knows.
    alone = "prompt" in row and _bare(row)
    return pair or single or alone or isinstance(row.get("messages"), list)


def read(row: Mapping[str, Any], id: str) -> Example:
    """One row. Raises BadRecord naming the field at fault."""
    return media_columns.fill(_read(row, id), row, lead=True)


def _bare(row):
    return set(row) <= {"prompt", "id", *media_columns.KINDS}


def _read(row, id):
    if "messages" in row:
        return _conversation(row, id)
    if "completion" in row:
        return _completion(row, id)
    if _bare(row):
        prompt = common.messages(common.need(row, "prompt"), "prompt", "user")
        return Example(id, prompt, extra=common.rest(row, {"prompt"}))
    return _pair(row, id)


def _pair(row, id):
    chosen, rejected = common.need(row, "chosen"), common.need(row, "rejected")
    used = {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
    if "prompt" in row:
        prompt = common.messages(row["prompt"], "prompt", "user")
        sides = [
            common.response(v, f)
            for v, f in ((chosen, "chosen"), (rejected, "rejected"))
        ]
    else:
        prompt, sides = _implicit(chosen, rejected)
    margin = None
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        margin = float(row["score_chosen"]) - float(row["score_rejected"])
    scores = {n: row[n] for n in ("score_chosen", "score_rejected") if n in row}
    return Example(
        id,
        prompt,
        tuple(sides),
        Feedback(chosen=0, margin=margin),
        common.rest(row, used) | scores,
    )


def _implicit(chosen, rejected):
    """The prompt is what both conversations begin with."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRecord(
            "prompt",
            "missing. Add a prompt column, give chosen and rejected as lists of messages "
            "that begin alike, or use the hh_rlhf format for Human:/Assistant: text.",
        )
    chosen = common.messages(chosen, "chosen", "assistant")
    rejected = common.messages(rejected, "rejected", "assistant")
    size = 0
    while size < min(len(chosen), len(rejected)) and chosen[size] == rejected[size]:
        size += 1
    if size == 0 or size == len(chosen) or size == len(rejected):
        raise BadRecord(
            "chosen/rejected",
            "the conversations must share their first messages and then differ.",
        )
    return chosen[:size], [Response(chosen[size:]), Response(rejected[size:])]


def _completion(row, id):
    prompt = common.messages(common.need(row, "prompt"), "prompt", "user")
    answer = common.response(common.need(row, "completion"), "completion")
    labels = (bool(row["label"]),) if row.get("label") is not None else ()
    return Example(
        id,
        prompt,
        (answer,),
        Feedback(labels=labels),
        common.rest(row, {"prompt", "completion", "label"}),
    )


def _conversation(row, id):
    """Everything after the first assistant header is the response."""
    said = common.messages(row["messages"], "messages", "user")
    first = next((n for n, m in enumerate(said) if m.role == "assistant"), None)
    if not first:
        raise BadRecord("messages", "needs a user message, then an assistant message.")
    return Example(
        id,
        said[:first],
        (Response(said[first:]),),
        Feedback(),
        common.rest(row, {"messages"}),
    )
