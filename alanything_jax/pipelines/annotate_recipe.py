"""Annotation as a recipe: the models that answer, the judge, and rounds with people.

<run>/dataset        prompts, responses, the judge's feedback
<run>/label_studio   tasks for people, if asked for
<run>/human          the same records with people's feedback too, read back
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

from alanything_jax.data import groups, store
from alanything_jax.data.encode import BadRecord
from alanything_jax.data.formats import label_studio_tasks
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.evaluation import agreement
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines import asking
from alanything_jax.pipelines.annotate import Annotate, annotate
from alanything_jax.rewards.judge import Judge
from alanything_jax.schema import Feedback
from alanything_jax.training.run_dir import open_run

# What may differ when a run goes on.
_FREE = ("stages.max_bad_share", "label_studio", "annotated")


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Who answers the prompts, who judges, and what people are asked.

    Attributes:
      stages: the prompts, and how they are graded; see `Annotate`.
      models: (name, HF directory or hub id) pairs that answer every prompt.
      own_responses: keep the responses that the source has, and judge them too.
      label_studio: also write Label Studio tasks of the records with two responses.
      annotated: Label Studio's JSON export of such tasks, annotated: read into `human`.
    """

    stages: Annotate
    models: tuple[tuple[str, str], ...]
    judge: asking.JudgeSource | Judge
    name: str = "annotate"
    own_responses: bool = False
    max_new_tokens: int = 256
    sampling: Sampling = Sampling(temperature=1.0)
    seed: int = 0
    label_studio: bool = False
    annotated: tuple[str, ...] = ()


def annotate_recipe(
    recipe: Annotation,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run the stages, or what is left of them, then the rounds with people.

    Returns what the run directory holds of `dataset`, `label_studio` and `human`.

    Raises:
      FileNotFoundError: no prompts. JudgeDown: the judge cannot be asked.
      ValueError: as `annotate`; or a task people did that cannot be read.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    made = [run / name for name in ("dataset", "label_studio", "human")]
    dataset, tasks, human = made
    if not dataset.exists():
        source = recipe.stages.prompts
        if ":" not in source and not Path(source).exists():
            raise FileNotFoundError(
                f"stages.prompts is {source!r}, where there is nothing. Give --stages."
                "prompts a .json, .jsonl or .parquet file, a converted data set, or "
                '"playground:prompts/COUNT".'
            )
        judge = asking.open_judge(recipe.judge, run / "replies")
        said = dataclasses.replace(recipe, judge=asking.named(recipe.judge))
        open_run(run, said, _FREE)
        writers = {name: _writer(recipe, name, path) for name, path in recipe.models}
        annotate(recipe.stages, judge, run, writers, _prompts(recipe), say)
    if recipe.label_studio and not tasks.exists():
        stages = recipe.stages
        sent = label_studio_tasks.export(store.read(dataset), tasks, stages.dimensions)
        for folder, count in sent.folders.items():
            say(f"{count} tasks in {tasks / folder}")
        for id, reason in sent.aside[:5]:
            say(f"no task of {id}: {reason}")
    if recipe.annotated:
        found = _people(recipe, run)
        store.write(found, human)
        raters, votes = agreement.choices(found)
        for name, row in zip(raters, votes, strict=True):
            if name != recipe.stages.rater and recipe.stages.rater in raters:
                same = agreement.share(row, votes[raters.index(recipe.stages.rater)])
                say(f"{name} prefers what {recipe.stages.rater} prefers: {same:.0%}")
    return [place for place in made if place.exists()]


def _prompts(recipe):
    """The source's records, their own responses and feedback left out unless kept."""
    stages = recipe.stages
    for _, example in groups.examples(stages.prompts, stages.format, stages.columns):
        if recipe.own_responses or isinstance(example, Exception):
            yield example
        else:
            yield dataclasses.replace(example, responses=(), feedback=Feedback())


def _writer(recipe, name, path):
    """A model by its path; two of one path still answer differently."""
    seed = recipe.seed + zlib.crc32(name.encode())
    limits = recipe.max_new_tokens, recipe.sampling, seed
    return asking.stored_model(ModelSource(path), *limits)


def _people(recipe, run):
    """What people handed in, with its media from the tasks they were given."""
    aside = Quarantine(run / "quarantine-human.jsonl", recipe.stages.max_bad_share)
    folders, found = sorted((run / "label_studio").glob("*/media")), []
    for path in recipe.annotated:
        for row, example in groups.examples(path, "label_studio"):
            aside.seen += 1
            try:
                if isinstance(example, Exception):
                    raise example
                found.append(_restored(example, folders))
            except ValueError as error:
                aside.add(path, row, error)
    aside.close()
    return found


def _restored(example, folders):
    for folder in folders:
        try:
            return label_studio_tasks.restore(example, folder)
        except BadRecord as error:
            fault = error
    if folders:
        raise fault
    return example
