"""Arena: every two models answer every prompt, a judge compares, ratings come out.

Each pair of answers is shown in both orders. A judgement that changes with the order is
a tie: judges favour a place (Zheng et al. 2023). A judgement that cannot be read is
neither a win nor a tie; it is counted and listed. Answers and battles are appended to the
run directory as they are finished, so that the same call on it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alanything_jax import schema
from alanything_jax.data.files import digest, lines, write_aside, write_json
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import ModelSource
from alanything_jax.pipelines import arena_page, arena_report, asking
from alanything_jax.pipelines.arena_battle import (
    TEMPLATES,
    Battle,
    Prompt,
    fingerprint,
    question,
    same_answers,
    settle,
)
from alanything_jax.pipelines.asking import Model
from alanything_jax.rewards.judge import Judge, Reply
from alanything_jax.training.run_dir import append


@dataclasses.dataclass(frozen=True)
class Arena:
    """Who meets on what, and who judges.

    Attributes:
      models: (name, model) pairs, or a mapping. A model is a callable, prompts -> one
        Response each (None = it cannot answer this one), or what `hub.load` takes.
      prompts: text, messages, or Examples, whose ids are kept.
      judge: compares two answers; or `rule`, (example, response) -> score, decides, for
        prompts that are Examples, such as the playground's oracle.
      judge_name: goes into every battle as the one who judged.
      templates: a folder with `system.txt` and `question.txt`; None = ours.
      batch_size: prompts answered, and battles judged, in one call.
      give_up_after: stop asking when so many calls in a row had no answer at all.
      max_new_tokens, sampling: for models given by path.
      prior, resamples, level: see `evaluation.bradley_terry`.
    """

    models: Mapping[str, Model | str] | tuple[tuple[str, Model | str], ...]
    prompts: tuple[schema.Example | Prompt | str, ...]
    judge: Judge | None = None
    rule: Callable[[schema.Example, schema.Response], float] | None = None
    name: str = "arena"
    judge_name: str = "judge"
    both_orders: bool = True
    seed: int = 0
    templates: Path | None = None
    batch_size: int = 16
    give_up_after: int = 3
    max_new_tokens: int = 256
    sampling: Sampling = Sampling(temperature=0.0)
    prior: float = 1.0
    resamples: int = 1000
    level: float = 0.95

    def __post_init__(self):
        names = [name for name, _ in self.contestants]
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise ValueError(
                f"the arena's models are {names}: give two or more, each with its own name."
            )
        if (self.judge is None) == (self.rule is None):
            raise ValueError("give the arena a judge or a rule, one of them.")
        if self.rule and not all(isinstance(p, schema.Example) for p in self.prompts):
            raise ValueError("a rule needs prompts that are Examples.")
        if not self.prompts:
            raise ValueError("the arena has no prompts: give at least one.")

    def tiny(self) -> Arena:
        """The same with small random models in the place of those on disk."""
        small = "playground:48x1"
        models = [(name, m if callable(m) else small) for name, m in self.contestants]
        return dataclasses.replace(
            self, models=tuple(models), prompts=self.prompts[:8], max_new_tokens=24
        )

    @property
    def contestants(self) -> tuple[tuple[str, Model | str], ...]:
        """The (name, model) pairs."""
        given = self.models
        return tuple(given.items() if isinstance(given, Mapping) else given)


def arena(
    recipe: Arena,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Answer, judge, rate.

    Returns the report, also written to `<run_dir>/report.json` beside `vote.html`,
    where people vote on the same battles. `complete` is False while battles are left
    that the judge did not answer: the same call asks them again.

    Raises:
      ValueError: the run directory belongs to another arena; a model gave no Response.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    run.mkdir(parents=True, exist_ok=True)
    prompts = _prompts(recipe)
    _same_arena(run / "arena.json", recipe, prompts)
    limits = recipe.max_new_tokens, recipe.sampling, recipe.seed
    models = (
        (name, m if callable(m) else asking.stored_model(ModelSource(str(m)), *limits))
        for name, m in recipe.contestants
    )
    path = run / "answers.jsonl"
    answers = asking.answer_all(models, prompts, path, recipe.batch_size, say)
    fights = _pair(recipe, prompts, answers)
    settled, failed = _judge(recipe, fights, run, say)
    names = [name for name, _ in recipe.contestants]
    answers = {at: answers[at] for at in itertools.product(names, prompts)}
    options = ("prior", "resamples", "level", "seed")
    options = {name: getattr(recipe, name) for name in options}
    report = {"judge": recipe.judge_name}
    report |= arena_report.summarize(answers, fights, settled, failed, **options)
    write_json(run / "report.json", report)
    page = {"seed": recipe.seed, "title": recipe.name}
    arena_page.write_page(run / "vote.html", fights, **page)
    return report


def battles(recipe: Arena, run_dir: str | Path) -> list[Battle]:
    """Every pair of answers of a run directory, judged or not."""
    prompts = _prompts(recipe)
    return _pair(recipe, prompts, asking.kept(Path(run_dir) / "answers.jsonl"))


# --- prompts and answers ---


def _prompts(recipe) -> dict[str, Prompt]:
    prompts = {}
    for number, given in enumerate(recipe.prompts):
        key = given.id if isinstance(given, schema.Example) else f"prompt-{number:05d}"
        if key in prompts:
            raise ValueError(f"two prompts have the id {key!r}; ids are unique.")
        if isinstance(given, str):
            given = (schema.Message("user", (schema.Part("text", given),)),)
        prompts[key] = given.prompt if isinstance(given, schema.Example) else given
    return prompts


def _same_arena(path, recipe, prompts):
    """Models and prompts may be added to a run; what is there must stay as it was."""
    folder = recipe.templates or TEMPLATES
    texts = [(folder / f"{n}.txt").read_text("utf-8") for n in ("system", "question")]
    ours = {
        "judge": {"": recipe.judge_name},
        "templates": {"": digest(texts)},
        "both_orders": {"": recipe.both_orders},
        "seed": {"": recipe.seed},
        "sampling": {"": [recipe.max_new_tokens, dataclasses.astuple(recipe.sampling)]},
        "prompt": {key: digest(prompt) for key, prompt in prompts.items()},
        "model": {
            n: "callable" if callable(m) else str(m) for n, m in recipe.contestants
        },
    }
    ours = json.loads(json.dumps(ours))
    theirs = json.loads(path.read_text()) if path.exists() else {}
    changed = [
        f"{field} {key}".strip()
        for field, values in ours.items()
        for key, value in values.items()
        if theirs.get(field, {}).get(key, value) != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} belongs to another arena; these differ: "
            f"{', '.join(changed[:10])}. Give another --run-dir, or remove it."
        )
    write_json(path, {f: theirs.get(f, {}) | values for f, values in ours.items()})


def _pair(recipe, prompts, answers):
    """Battles, prompt by prompt; pairs with an answer missing are left out."""
    out = []
    for key, prompt in prompts.items():
        for pair in itertools.combinations([name for name, _ in recipe.contestants], 2):
            both = tuple(answers.get((name, key)) for name in pair)
            if None not in both:
                id = json.dumps([key, *pair], ensure_ascii=False)
                out.append(Battle(id, key, prompt, pair, both))
    return out


# --- judging ---


def _judge(recipe, fights, run, say):
    """({id: settled battle}, {id: battle without an answer}), both also on disk."""
    path, aside = run / "battles.jsonl", run / "failed.jsonl"
    now = {battle.id: fingerprint(battle) for battle in fights}
    old = (line for line in lines(path) if now.get(line["id"]) == line["answers"])
    settled = {line["id"]: line for line in old}
    failed = {line["id"]: line for line in lines(aside) if line["id"] in now}
    todo = [battle for battle in fights if battle.id not in settled]
    todo.sort(key=lambda battle: battle.id in failed)  # what failed before comes last
    silent = 0
    for start in range(0, len(todo), recipe.batch_size):
        some = todo[start : start + recipe.batch_size]
        records = _ask(recipe, some)
        for record in records:
            failed.pop(record["id"], None)
            if record["why"] == "failed":
                failed[record["id"]] = record
            else:
                append(path, record)
                settled[record["id"]] = record
        silent = silent + 1 if all(r["why"] == "failed" for r in records) else 0
        say(f"judged {len(fights) - len(todo) + start + len(some)} of {len(fights)}")
        if 0 < recipe.give_up_after <= silent:
            say(f"the judge does not answer ({records[-1]['detail']}); stopped asking.")
            break
    failed = {key: line for key, line in failed.items() if key not in settled}
    write_aside(aside, "".join(json.dumps(line) + "\n" for line in failed.values()))
    return settled, failed


def _ask(recipe, some):
    """One record a battle; equal answers are a tie that nobody needs to judge."""
    folder = recipe.templates or TEMPLATES
    records, asked = {}, {}
    for battle in some:
        record = {"id": battle.id, "prompt": battle.prompt_id}
        record |= {"answers": fingerprint(battle), "models": list(battle.models)}
        record["judge"] = recipe.judge_name
        records[battle.id] = record
        if same_answers(battle):
            record |= {"outcome": "tie", "why": "identical"}
        elif recipe.rule:
            record |= {"outcome": _by_rule(recipe, battle), "why": "judged"}
        else:
            odd = int(digest([recipe.seed, battle.id]), 16) % 2 == 1
            orders = (False, True) if recipe.both_orders else (odd,)
            asked[battle.id] = {swap: question(battle, swap, folder) for swap in orders}
    questions = [one for orders in asked.values() for one in orders.values()]
    replies = recipe.judge(questions) if questions else {}
    absent = Reply("", None, "the judge gave no reply to this question")
    for id, orders in asked.items():
        got = [replies.get(one.id, absent) for one in orders.values()]
        records[id] |= settle(list(orders), got)
    return list(records.values())


def _by_rule(recipe, battle):
    (example,) = (e for e in recipe.prompts if e.id == battle.prompt_id)
    first, second = (recipe.rule(example, r) for r in battle.responses)
    return "tie" if first == second else "first" if first > second else "second"
