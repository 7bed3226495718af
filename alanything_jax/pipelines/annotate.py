"""Annotation: prompts, responses of several models, grades, critiques, choices.

Each stage turns every shard of the stage before it into one of its own. A finished shard
is never done again and a killed one starts over, so the rows after a crash and a restart
are those of a run without one, given a judge and writers whose answers depend on what
they are asked alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from alanything_jax.data import groups, media, store
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.feedback import DIMENSIONS
from alanything_jax.data.files import digest, write_json
from alanything_jax.pipelines import annotate_rubrics as texts
from alanything_jax.pipelines import annotate_shards as shards
from alanything_jax.pipelines.annotate_rubrics import Garbled, Rubrics
from alanything_jax.pipelines.annotate_shards import Dropped, Row
from alanything_jax.pipelines.annotate_stages import STAGES, Panel, Stage
from alanything_jax.pipelines.asking import JudgeDown
from alanything_jax.rewards.judge import Judge, Question
from alanything_jax.schema import Example, Message, Part, Response, parts_of
from alanything_jax.training.run_dir import open_run

Writer = Callable[[list[tuple[Message, ...]]], Sequence[Response | None]]


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
        source = groups.examples(recipe.prompts, recipe.format, recipe.columns)
        source = source if examples is None else enumerate(examples)
        _cut(source, recipe.shard_rows, run_dir / "prompts")
    total = json.loads(done.read_text())["rows"]
    panel = Panel(recipe.rater, recipe.orders)
    steps: dict[str, Callable[[list[Row]], list[Row | Dropped]]] = {
        "responses": functools.partial(_respond, writers)
    }
    for stage in STAGES:
        steps[stage.name] = _Judged(stage, judge, recipe, rubrics, panel)
    names = ["prompts", *steps]
    stopped = None
    try:
        shards.account(run_dir, names, total, recipe.max_bad_share)
        for before, name in itertools.pairwise(names):
            _advance(run_dir, before, name, steps[name], say)
            shards.account(run_dir, names, total, recipe.max_bad_share)
    except (RuntimeError, ValueError) as error:
        stopped = str(error)
        raise
    finally:
        table = shards.table(run_dir, names, total) | {"stopped": stopped}
        write_json(run_dir / "yield.json", table)
    say(shards.describe(table))
    return _finish(run_dir, names[-1], table)


def _claim(recipe, rubrics, writers, run_dir):
    """Mark the directory as this recipe's; refuse another's."""
    mine = dataclasses.asdict(recipe) | {"writers": writers}
    free = {"max_bad_share": None, "rubrics": digest(rubrics)}
    open_run(run_dir, mine | free, name="annotate.json")


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
    write_json(folder / "done.json", {"rows": count})


def _sound(row, example, seen):
    """The row as it goes on, or why it does not."""
    if isinstance(example, Exception):
        return Dropped(f"row {row}", row, "unreadable", str(example))
    if example.id in seen:
        return Dropped(example.id, row, "duplicate", "an earlier record has this id")
    seen.add(example.id)
    messages = [*example.prompt, *(m for r in example.responses for m in r.messages)]
    if not any(map(_said, parts_of(example.prompt))):
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
    for part in parts_of(messages):
        # What a link leads to is the judge's to fetch.
        if part.kind == "text" or (part.uri or "").startswith(("http://", "https://")):
            continue
        try:
            media.load(part)
        except media.MediaError as error:
            return f"{part.kind}: {error}"
    return None


def _respond(writers, rows):
    """Every writer's answers appended; each record needs two that differ."""
    said = {}
    for name, writer in writers.items():
        said[name] = list(writer([example.prompt for _, example in rows]))
        if len(said[name]) != len(rows):
            raise ValueError(
                f"writer {name!r} gave {len(said[name])} responses to {len(rows)} prompts."
            )
    each = [{name: given[n] for name, given in said.items()} for n in range(len(rows))]
    return [_answered(*row, own) for row, own in zip(rows, each, strict=True)]


def _answered(row, example, given):
    for name, response in given.items():
        if response is None:
            reason = f"{name} cannot answer this prompt"
            return Dropped(example.id, row, "missing", reason)
        if not any(map(_said, parts_of(response.messages))):
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
        said, ended = {row: {} for row, _ in rows}, {}
        for (row, key), answer in answers.items():
            said[row][key] = answer
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
        return None, (error.cause, str(error))


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
        rows = (shards.read(place)[0] for place in shards.finished(run_dir / last))
        store.write((example for some in rows for _, example in some), dataset)
    return Annotated(dataset, records, table)
