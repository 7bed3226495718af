"""Annotation: prompts, responses of several models, grades, critiques, choices.

Each stage turns every shard of the stage before it into one of its own. A finished shard
is never done again and a killed one starts over, so the rows after a crash and a restart
are those of a run without one, given a judge and writers whose answers depend on what
they are asked alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from alanything_jax.data import groups, media, store
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.feedback import DIMENSIONS
from alanything_jax.pipelines import annotate_rubrics as texts
from alanything_jax.pipelines import annotate_shards as shards
from alanything_jax.pipelines import annotate_yield
from alanything_jax.pipelines.annotate_rubrics import Garbled, Rubrics
from alanything_jax.pipelines.annotate_shards import Dropped, Row
from alanything_jax.pipelines.annotate_stages import STAGES, Echo, Panel, Stage
from alanything_jax.rewards.judge import Judge, Question
from alanything_jax.schema import Example, Message, Part, Response

Writer = Callable[[list[tuple[Message, ...]]], Sequence[Response | None]]


class JudgeDown(RuntimeError):
    """Too many questions of a shard met an error: stop, and start again later."""


@dataclasses.dataclass(frozen=True)
class Annotate:
    """A recipe.

    Attributes:
      prompts: any source `data/groups.py` reads; with responses in it, or without.
      format, columns: how it is read.
      rubrics: folder of questions and rubrics, see `annotate_rubrics.py`.
      dimensions: modality -> what is graded and compared.
      rater: the judge's name in the feedback.
      orders: presentation orders of a choice; 2 removes position bias, 1 does not.
      attempts: how often a question is asked whose reply cannot be used.
      shard_rows: prompts a shard.
      max_bad_share: share of records that may end before the last stage, and of a
        shard's questions that may meet an error of the judge.
    """

    prompts: str = ""
    format: str = "auto"
    columns: tuple[str, ...] = ()
    rubrics: str = str(texts.FOLDER)
    dimensions: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: dict(DIMENSIONS)
    )
    rater: str = "judge"
    orders: int = 2
    attempts: int = 2
    shard_rows: int = 64
    max_bad_share: float = 0.05

    def __post_init__(self):
        if self.orders not in (1, 2) or self.attempts < 1 or self.shard_rows < 1:
            raise ValueError(
                f"orders {self.orders} (1 or 2), attempts {self.attempts} and shard_rows "
                f"{self.shard_rows} (1 or more) are not all allowed."
            )


@dataclasses.dataclass(frozen=True)
class Annotated:
    """What a run wrote: the data set, its size, and the yield table."""

    dataset: Path
    records: int
    table: Mapping[str, object]


def annotate(
    recipe: Annotate,
    judge: Judge,
    run_dir: Path,
    writers: Mapping[str, Writer] | None = None,
    examples: Iterable[Example] | None = None,
    say: Callable[[str], None] = print,
) -> Annotated:
    """Run all stages, or what is left of them.

    Args:
      writers: model name -> messages of several prompts -> a Response each, or
        None for a prompt it cannot answer; they follow the responses a record has.
      examples: instead of `recipe.prompts`.

    Returns:
      The data set `run_dir/dataset`; `yield.json` and `quarantine.jsonl` lie beside it.

    Raises:
      JudgeDown: the judge fails; the same call goes on where this one stopped.
      TooManyBad: more records ended than `max_bad_share`.
      ValueError: a rubric is missing, the directory holds another recipe's run, or no
        record reached the end.
    """
    run_dir, writers = Path(run_dir), writers or {}
    rubrics = texts.load(Path(recipe.rubrics), recipe.dimensions)
    _claim(recipe, rubrics, list(writers), run_dir)
    done = run_dir / "prompts" / "done.json"
    if not done.exists():
        _cut(_source(recipe, examples), recipe.shard_rows, run_dir / "prompts")
    total = json.loads(done.read_text())["rows"]

    def respond(rows):
        return _respond(rows, writers)

    panel = Panel(recipe.rater, recipe.orders)
    steps: list[tuple[str, Callable[[list[Row]], list[Row | Dropped]]]] = [
        ("responses", respond)
    ]
    for stage in STAGES:
        steps.append((stage.name, _Judged(stage, judge, recipe, rubrics, panel)))
    names = ["prompts", *(name for name, _ in steps)]
    stopped = None
    try:
        annotate_yield.account(run_dir, names[:1], total, recipe.max_bad_share)
        for number, (name, work) in enumerate(steps, 1):
            _advance(run_dir, names[number - 1], name, work, say)
            annotate_yield.account(
                run_dir, names[: number + 1], total, recipe.max_bad_share
            )
    except (RuntimeError, ValueError) as error:
        stopped = str(error)
        raise
    finally:
        table = annotate_yield.table(run_dir, names, total) | {"stopped": stopped}
        shards.write_json(run_dir / "yield.json", table)
    say(annotate_yield.describe(table))
    return _finish(run_dir, names[-1], table)


def _claim(recipe, rubrics, writers, run_dir):
    """Mark the directory as this recipe's; refuse another's."""
    mine = json.loads(json.dumps(dataclasses.asdict(recipe) | {"writers": writers}))
    for free in ("max_bad_share", "rubrics"):
        mine.pop(free)
    said = json.dumps(dataclasses.asdict(rubrics), sort_keys=True).encode()
    mine["rubrics_sha256"] = hashlib.sha256(said).hexdigest()
    place = run_dir / "annotate.json"
    if place.exists():
        theirs = json.loads(place.read_text())
        other = sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k))
        if other:
            raise ValueError(
                f"{run_dir} was begun with other {', '.join(other)}. Give a new "
                "directory, or the recipe it was begun with."
            )
    shards.write_json(place, mine)


def _source(recipe, examples):
    """(row, Example or its error) of the recipe's source."""
    if examples is not None:
        return enumerate(examples)
    return groups.examples(recipe.prompts, recipe.format, recipe.columns)


def _cut(source, shard_rows, folder):
    """The source in shards; unfinished ones of an earlier try are overwritten."""
    if folder.exists():
        shutil.rmtree(folder)
    rows, seen, count, number = [], set(), 0, 0
    for row, example in source:
        rows.append(_sound(row, example, seen))
        count += 1
        if len(rows) == shard_rows:
            shards.write(shards.path(folder, number), rows)
            rows, number = [], number + 1
    if rows:
        shards.write(shards.path(folder, number), rows)
    if not count:
        raise ValueError("the source holds no prompt: nothing to annotate.")
    shards.write_json(folder / "done.json", {"rows": count})


def _sound(row, example, seen):
    """The row as it goes on, or why it does not."""
    if isinstance(example, Exception):
        return Dropped(f"row {row}", row, "unreadable", str(example))
    if example.id in seen:
        return Dropped(example.id, row, "duplicate", "an earlier record has this id")
    seen.add(example.id)
    messages = [*example.prompt, *(m for r in example.responses for m in r.messages)]
    if not any(_said(part) for message in example.prompt for part in message.parts):
        return Dropped(example.id, row, "empty", "the prompt has no content")
    if fault := _media_fault(messages):
        return Dropped(example.id, row, "unreadable", fault)
    return row, example


def _said(part: Part) -> bool:
    if part.kind == "text":
        return bool((part.text or "").strip())
    return part.data is not None or part.uri is not None


def _media_fault(messages):
    """What is wrong with the first medium that cannot be decoded; None if all can."""
    for part in (part for message in messages for part in message.parts):
        # What a link leads to is the judge's to fetch.
        if part.kind == "text" or (part.uri or "").startswith(("http://", "https://")):
            continue
        try:
            media.load(part)
        except media.MediaError as error:
            return f"{part.kind}: {error}"
    return None


def _respond(rows, writers):
    """Every writer's answers appended; each record needs two that differ."""
    said = {}
    for name, writer in writers.items():
        said[name] = list(writer([example.prompt for _, example in rows]))
        if len(said[name]) != len(rows):
            raise ValueError(
                f"writer {name!r} gave {len(said[name])} responses to {len(rows)} prompts."
            )
    return [
        _answered(row, example, {name: given[n] for name, given in said.items()})
        for n, (row, example) in enumerate(rows)
    ]


def _answered(row, example, given):
    for name, response in given.items():
        if response is None:
            reason = f"{name} cannot answer this prompt"
            return Dropped(example.id, row, "missing", reason)
        parts = [part for message in response.messages for part in message.parts]
        if not any(map(_said, parts)):
            return Dropped(example.id, row, "empty", f"{name} answered nothing")
        if fault := _media_fault(response.messages):
            return Dropped(example.id, row, "unreadable", f"{name}: {fault}")
    responses = (*example.responses, *given.values())
    if len(responses) < 2:
        reason = f"responses: choices need 2, the record has {len(responses)}"
        return Dropped(example.id, row, "attribute", reason)
    keys = [json.dumps(store.to_json(r), sort_keys=True) for r in responses]
    if len(set(keys)) < len(keys):
        return Dropped(example.id, row, "duplicate", "two responses are the same")
    if given:
        own = list(example.extra.get("models", [None] * len(example.responses)))
        extra = {**example.extra, "models": [*own, *given]}
        example = dataclasses.replace(example, responses=responses, extra=extra)
    return row, example


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A stage's work on one shard: all questions at once, bad replies asked again."""

    stage: Stage
    judge: Judge
    recipe: Annotate
    rubrics: Rubrics
    panel: Panel

    def __call__(self, rows):
        asks, faults = {}, {}
        for row, example in rows:
            try:
                own = self.stage.ask(example, self.rubrics, self.panel)
            except BadRecord as error:
                faults[row, None] = ("attribute", str(error))
                continue
            # The row's number keeps questions apart whatever the ids look like.
            lead = f"{row}:{example.id}/{self.stage.name}"
            asks |= {(row, key): (f"{lead}/{key}", ask) for key, ask in own.items()}
        answers, bad = self._ask(asks)
        said = {row: {} for row, _ in rows}
        for (row, key), answer in answers.items():
            said[row][key] = answer
        ended = {}
        for (row, key), fault in (faults | bad).items():
            ended.setdefault(row, (*fault, key))
        return [
            Dropped(example.id, row, *ended[row])
            if row in ended
            else (row, self.stage.put(example, said[row], self.panel.rater))
            for row, example in rows
        ]

    def _ask(self, asks):
        """(answers, faults), each by (row, key), of {(row, key): (id, Ask)}."""
        answers, faults, left = {}, {}, list(asks)
        for attempt in range(self.recipe.attempts):
            if not left:
                break
            questions = {
                place: self._question(*asks[place], faults.get(place), attempt)
                for place in left
            }
            replies = self.judge(list(questions.values()))
            for place, question in questions.items():
                answer, fault = _answer(asks[place][1], replies.get(question.id))
                if fault is None:
                    answers[place] = answer
                    faults.pop(place, None)
                else:
                    faults[place] = fault
            self._stop_if_down(faults, len(asks))
            # The judge itself has tried again after an error: only bad replies are left.
            left = [place for place, (cause, _) in faults.items() if cause != "error"]
        # In the order asked, whatever had to be asked again.
        return {place: answers[place] for place in asks if place in answers}, faults

    def _stop_if_down(self, faults, asked):
        down = [reason for cause, reason in faults.values() if cause == "error"]
        if len(down) > self.recipe.max_bad_share * asked:
            raise JudgeDown(
                f"{len(down)} of {asked} questions of a shard of {self.stage.name!r} met "
                f"an error of the judge, first: {down[0]}. What is finished is kept: run "
                "the same again when the judge is back, or raise max_bad_share if the "
                "records are at fault."
            )

    def _question(self, name, ask, fault, attempt):
        if not attempt:
            return Question(name, ask.messages)
        again = string.Template(self.rubrics.questions["again"])
        text = again.substitute(problem=fault[1])
        *before, last = ask.messages
        last = dataclasses.replace(last, parts=(*last.parts, Part("text", text=text)))
        return Question(f"{name}#{attempt + 1}", (*before, last))


def _answer(ask, reply):
    """(answer, None), or (None, (cause, reason))."""
    if reply is None:
        return None, ("missing", "the judge gave no reply to this question")
    # "empty answer" is a local judge's word for a reply of no text.
    if reply.error is not None and not reply.error.startswith("empty"):
        return None, ("error", reply.error)
    if not (reply.text or "").strip():
        return None, ("empty", "the reply is empty")
    try:
        return ask.read(reply.text), None
    except Garbled as error:
        return None, ("garbled", str(error))
    except Echo as error:
        return None, ("echo", str(error))


def _advance(run_dir, before, name, work, say):
    """Every shard of the stage before that has none here yet."""
    sources = shards.finished(run_dir / before)
    for number, source in enumerate(sources):
        place = shards.path(run_dir / name, number)
        if place.exists():
            continue
        rows, _ = shards.read(source)
        out = work(rows) if rows else []
        shards.write(place, out)
        kept = sum(not isinstance(row, Dropped) for row in out)
        say(f"{name} {number + 1}/{len(sources)}: {kept} of {len(rows)} rows go on")


def _finish(run_dir, last, table):
    """The last stage's rows as a data set."""
    dataset = run_dir / "dataset"
    records = table["stages"][last]["out"]
    if not records:
        raise ValueError(
            f"no record reached the end; why is listed in {run_dir}/quarantine.jsonl."
        )
    if not dataset.exists():
        rows = (
            row for p in shards.finished(run_dir / last) for row in shards.read(p)[0]
        )
        store.write((example for _, example in rows), dataset)
    return Annotated(dataset, records, table)
