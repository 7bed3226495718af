"""The stages of learning from language feedback, and the files that make them resumable."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from alanything_jax import hub
from alanything_jax.data import groups, store, views
from alanything_jax.experiment import differences
from alanything_jax.generation.generate import Answer, encode_prompt, generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.models.params import flatten
from alanything_jax.rewards.model import score_responses
from alanything_jax.schema import Critique, Example, Feedback, Message
from alanything_jax.sharding import distributed
from alanything_jax.training.reference import fingerprint
from alanything_jax.training.run_dir import write_aside

EMPTY = Feedback()


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt on its way to a pair.

    Attributes:
      example: what is there so far: responses (y, then y*), critiques.
      dropped: why it goes no further; "" while it does.
      made: per stage, which weights, seed and template made it.
    """

    example: Example
    dropped: str = ""
    made: dict[str, Any] = dataclasses.field(default_factory=dict)


Stage = Callable[[Sequence[Row], int], list[Row]]


class Writer:
    """A model that answers conversations: one batch shape, a seed a call."""

    def __init__(self, bundle: hub.Bundle, sampling: Sampling, rows: int):
        self.bundle, self.sampling, self.rows = bundle, sampling, rows
        self.weights = fingerprint(flatten(bundle.params))[:16]

    def __call__(
        self,
        prompts: Sequence[tuple[Message, ...]],
        max_new_tokens: int,
        seed: int,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """One answer a prompt. Row n depends on its prompt, n and the seed only."""
        if not prompts:
            return []
        out = generate(
            self.bundle,
            [*prompts, *[prompts[0]] * (self.rows - len(prompts))],
            max_new_tokens=max_new_tokens,
            sampling=sampling or self.sampling,
            batch_size=self.rows,
            seed=seed,
        )
        return [answers[0] for answers in out[: len(prompts)]]


class Runner:
    """Runs a stage shard by shard, skipping the shards that are finished."""

    def __init__(
        self,
        folder: Path,
        seed: tuple[int, int],
        shard_rows: int,
        table: list[dict[str, Any]],
        say: Callable[[str], None],
    ):
        self.folder, self.seed, self.shard_rows = folder, seed, shard_rows
        self.table, self.say = table, say

    def __call__(
        self, name: str, rows: Sequence[Row], stage: Stage, writer: Writer
    ) -> list[Row]:
        """All rows after the stage, the dropped ones left out and counted.

        Of several processes each does every n-th shard; all read them all.
        """
        cut = range(0, len(rows), self.shard_rows)
        paths = [self.folder / name / f"shard-{n:05d}.jsonl" for n in range(len(cut))]
        with (
            Progress(
                f"{name:<9}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                disable=not distributed.is_primary(),
            ) as bar,
            distributed.preemption() as due,
        ):
            task = bar.add_task(name, total=len(rows))
            for n, start in enumerate(cut):
                if due():
                    bar.stop()
                    distributed.halt(
                        f"asked to stop: {n} of {len(cut)} shards of {name} are done in "
                        f"{self.folder}. The same command goes on from there."
                    )
                some = rows[start : start + self.shard_rows]
                if distributed.is_mine(n) and not paths[n].exists():
                    seed = _seed(*self.seed, name, n)
                    made = {"weights": writer.weights, "seed": seed}
                    done = [
                        dataclasses.replace(row, made=row.made | {name: made})
                        for row in stage(some, seed)
                    ]
                    write_rows(paths[n], done)
                bar.update(task, completed=start + len(some))
        distributed.wait()
        out = [row for path in paths for row in read_rows(path)]
        dropped = collections.Counter(row.dropped for row in out if row.dropped)
        kept = [row for row in out if not row.dropped]
        entry = {"round": self.seed[1], "stage": name, "kept": len(kept)}
        self.table.append(entry | {"dropped": dict(dropped.most_common())})
        told = ", ".join(f"{count} {why}" for why, count in dropped.most_common())
        self.say(
            f"  {name}: {len(kept)} of {len(out)} kept" + f" ({told})" * bool(told)
        )
        return kept


def _seed(*parts) -> int:
    """31 bits from anything printable."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON line a row; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "example": store.to_json(row.example),
                "dropped": row.dropped,
                "made": row.made,
            }
        )
        for row in rows
    ]
    write_aside(path, "".join(line + "\n" for line in lines))


def read_rows(path: Path) -> list[Row]:
    """The inverse of `write_rows`."""
    out = []
    for line in path.read_text().splitlines():
        value = json.loads(line)
        example = store.from_json(value["example"])
        out.append(Row(example, value["dropped"], value["made"]))
    return out


def same_recipe(path: Path, recipe: Any) -> None:
    """Write a recipe's picture, or check that the one that is there is the same.

    On several processes each checks, one writes.

    Raises ValueError: the directory belongs to another recipe; names the fields.
    """
    if path.exists():
        changed = differences(recipe, json.loads(path.read_text()))
        if changed:
            raise ValueError(
                f"{path.parent} belongs to another recipe (here -> there): "
                f"{'; '.join(changed)}. Give another --run-dir, or remove it."
            )
    distributed.wait()
    if distributed.is_primary():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, json.dumps(recipe, indent=1) + "\n")
    distributed.wait()


def rows_of(prompts: str) -> list[Row]:
    """A source's prompts; its responses and feedback are not read."""
    return [
        Row(dataclasses.replace(example, responses=(), feedback=EMPTY))
        for _, example in groups.examples(prompts)
        if not isinstance(example, Exception)
    ]


def sampler(policy: Writer, max_new_tokens: int) -> Stage:
    """y from the policy."""

    def stage(rows, seed):
        answers = policy([row.example.prompt for row in rows], max_new_tokens, seed)
        return [
            _with_response(row, answer, "the answer")
            for row, answer in zip(rows, answers, strict=True)
        ]

    return stage


def _with_response(row, answer, name):
    """The row with one more response, or the reason why it has none."""
    parts = answer.response.messages[0].parts
    said = any(p.kind != "text" or (p.text or "").strip() for p in parts)
    example = dataclasses.replace(
        row.example, responses=(*row.example.responses, answer.response)
    )
    why = "" if said else f"{name} is empty"
    if not answer.finished:
        why = f"{name} never ended"
    return dataclasses.replace(row, example=example, dropped=why)


def critic(writer: Writer, words: views.Templates, recipe: Any, tokens: int) -> Stage:
    """A critique of y, by a model or by `recipe.feedback`."""

    def stage(rows, seed):
        texts = critiques(rows, 0, writer, words, recipe, tokens, seed)
        return [
            _with_critique(row, text, recipe)
            for row, text in zip(rows, texts, strict=True)
        ]

    return stage


def critiques(rows, number, writer, words, recipe, tokens, seed) -> list[str]:
    """Critiques of each row's response number `number`."""
    if recipe.feedback is not None:
        return [recipe.feedback(r.example, r.example.responses[number]) for r in rows]
    asked = [
        views.ask_critique(r.example, r.example.responses[number], words) for r in rows
    ]
    return [a.text if a.finished else "" for a in writer(asked, tokens, seed)]


def verdict(text: str) -> bool | None:
    """What a critique says of the response; None where it says neither good nor bad."""
    found = re.search(r"\bverdict\W+(?:is\W+)?(good|bad)\b", text, re.IGNORECASE)
    return found[1].lower() == "good" if found else None


def _with_critique(row, text, recipe):
    answer = row.example.responses[0].messages[0].text.strip()
    good = verdict(text)
    why = ""
    if not text.strip():
        why = "the critic answered nothing"
    elif answer and text.strip() == answer:
        why = "the critique echoes the answer"
    elif good is None:
        why = "the critique holds no verdict"
    elif good and not recipe.keep_good:
        why = "the critic found nothing wrong"
    feedback = Feedback(critiques=(Critique(text, 0, rater="critic"),))
    example = dataclasses.replace(row.example, feedback=feedback)
    return dataclasses.replace(row, example=example, dropped=why)


def refiner(writer: Writer, words: views.Templates, recipe: Any, tokens: int) -> Stage:
    """y* from x, y and the critique, at the temperature that y was sampled at."""

    def stage(rows, seed):
        asked = [
            views.ask_refinement(
                row.example,
                row.example.responses[0],
                row.example.feedback.critiques[0].text,
                words,
            )
            for row in rows
        ]
        answers = writer(asked, tokens, seed, Sampling(recipe.temperature))
        return [
            _checked(_with_response(row, answer, "the refinement"), writer, recipe)
            for row, answer in zip(rows, answers, strict=True)
        ]

    return stage


def _checked(row, writer, recipe):
    """Drop a refinement that is equal, nearly equal, or much longer."""
    if row.dropped:
        return row
    old, new = (_tokens(writer, response) for response in row.example.responses)
    why = ""
    if old == new:
        why = "the refinement equals the answer"
    elif recipe.max_likeness < 1:
        likeness = difflib.SequenceMatcher(None, old, new, autojunk=False).ratio()
        if likeness > recipe.max_likeness:
            why = "the refinement is a near-duplicate"
    if recipe.max_length_ratio and len(new) > recipe.max_length_ratio * len(old):
        why = "the refinement is much longer"
    return dataclasses.replace(row, dropped=why)


def _tokens(writer, response):
    return encode_prompt(writer.bundle, response.messages)[0].tolist()


def verifier(writer: Writer, words: views.Templates, recipe: Any, tokens: int) -> Stage:
    """Keep what is shown to be better: y* over y becomes the pair."""

    def stage(rows, seed):
        if recipe.verify == "critic":
            texts = critiques(rows, 1, writer, words, recipe, tokens, seed)
            better = [verdict(text) is True for text in texts]
            why = "the critic does not call the refinement good"
        elif recipe.verify == "rule":
            better = [_gain(recipe.rule, row.example) > 0 for row in rows]
            why = "the rule does not score the refinement higher"
        elif recipe.verify == "reward":
            better = _rewarded(recipe, rows)
            why = "the reward model does not score the refinement higher"
        else:
            better, why = [True] * len(rows), ""
        return [
            _as_pair(row) if good else dataclasses.replace(row, dropped=why)
            for row, good in zip(rows, better, strict=True)
        ]

    return stage


def _gain(rule, example):
    old, new = (rule(example, response) for response in example.responses)
    return new - old


def _rewarded(recipe, rows):
    """Whether a reward model scores y* above y."""
    scores = score_responses(hub.load(recipe.reward), [row.example for row in rows])
    return [bool(new > old) for old, new in scores]


def _as_pair(row):
    """y* is chosen; the critique names it as its refinement."""
    first = row.example.feedback.critiques[0]
    told = dataclasses.replace(first, refinement=row.example.responses[1])
    feedback = Feedback(chosen=1, critiques=(told,), rater="llf")
    example = dataclasses.replace(row.example, feedback=feedback)
    return dataclasses.replace(row, example=example)


def at_most(rows: list[Row], count: int, seed: tuple[int, int]) -> list[Row]:
    """`count` rows by seed, in order; all of them for 0."""
    if not count or len(rows) <= count:
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[n] for n in sorted(chosen.tolist())]
