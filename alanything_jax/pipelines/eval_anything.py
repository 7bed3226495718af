"""Eval-Anything as recipes: a model answers the published data sets, a judge grades.

    <run>/answers.jsonl     what the model answered
    <run>/grades*.jsonl     each grade, with the judge's words
    <run>/quarantine.jsonl  records that cannot be used, and why
    <run>/report.json       the scores

All but the report is kept row by row: the same call goes on where it stopped, and asks
again what the judge failed to answer.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alanything_jax.data.files import digest, write_json
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.evaluation.eval_anything import (
    amg,
    amu,
    following,
    loaders,
    scores,
    templates,
)
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.pipelines import asking
from alanything_jax.pipelines.asking import JudgeSource, Model
from alanything_jax.rewards.judge import Judge
from alanything_jax.rewards.model import score_responses
from alanything_jax.schema import Example, Message, Modality, Part, Response, parts_of
from alanything_jax.training.run_dir import open_run

# What may differ when a run goes on.
_FREE = ("max_bad_share", "amu_report")
_HUB = {
    "data": "EvalAnything-AMU",
    "instructions": "EvalAnything-InstructionFollowing",
    "selection": "EvalAnything-Selection_Synergy",
}


@dataclasses.dataclass(frozen=True)
class AMU:
    """Understanding: questions over text, a picture or clip, and a sound.

    Attributes:
      data: folder of EvalAnything-AMU: config.json, its media unpacked beside it.
      judge: grades answers against people's answers; it reads text only.
      max_bad_share: share of records that may be unusable.
    """

    data: str
    model: ModelSource
    judge: JudgeSource | Judge
    name: str = "amu"
    max_new_tokens: int = 256
    sampling: Sampling = Sampling(temperature=0.0)
    max_bad_share: float = 0.05


@dataclasses.dataclass(frozen=True)
class AMG:
    """Generation: choosing modalities, following instructions, outputs that fit.

    Attributes:
      instructions: folder of EvalAnything-InstructionFollowing.
      selection: folder of EvalAnything-Selection_Synergy.
      model: makes its media itself; as an `agent` it writes instructions for
        `generators`, pairs of a modality and an HF directory, or a function from prompts
        to Responses.
      judge: reads texts, sees pictures and clips, hears sounds.
      kinds: modalities whose instructions are followed; S_AMG needs all.
      scorer: HF directory of a reward model whose sigmoid says how well two outputs fit,
        or a function (part, part) -> 0..1; "" leaves synergy out, and with it S_AMG.
      amu_report: the report of an AMU run, for the overall score.
    """

    instructions: str
    selection: str
    model: ModelSource
    judge: JudgeSource | Judge
    agent: bool = False
    generators: tuple[tuple[Modality, str | Model], ...] = ()
    kinds: tuple[Modality, ...] = ("text", "image", "audio", "video")
    scorer: str | amg.Scorer = ""
    amu_report: str = "runs/amu/report.json"
    name: str = "amg"
    max_new_tokens: int = 256
    sampling: Sampling = Sampling(temperature=0.0)
    max_bad_share: float = 0.05


def evaluate_amu(
    recipe: AMU, run_dir: str | Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Answer the questions, have them graded.

    Returns the report, also `<run_dir>/report.json`. `complete` is False where the
    judge failed a question: the same call asks it again.

    Raises:
      FileNotFoundError: no data. JudgeDown: the judge does not answer at all.
      ValueError: the directory holds another recipe's run, or the model reads none of
        the questions.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    aside = Quarantine(run / "quarantine.jsonl", recipe.max_bad_share)
    items = loaders.load_amu(_place(recipe, "data"), aside)
    judge, settings, words = _start(recipe, run, aside)
    answers = _answers(recipe, {item.id: item.prompt for item in items}, run, say)
    if not any(answers.values()):
        kinds = sorted({part.kind for item in items for part in item.media})
        raise ValueError(
            f"{recipe.model.path} can read none of the {len(items)} questions, which hold "
            f"text, {', '.join(kinds)}. Give --model.path a model that takes those."
        )
    say(f"judging {len(items)} answers")
    texts = {i: None if a is None else _text(_parts(a)) for i, a in answers.items()}
    place = run / "grades.jsonl"
    found = amu.evaluate(items, texts, judge, place, words, settings=settings)
    report = {"dimensions": found["dimensions"], "totals": {"amu": found["amu"]}}
    return _write(run, recipe, report, found["problems"], aside)


def evaluate_amg(
    recipe: AMG, run_dir: str | Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Have outputs made, graded and set against people's votes; as `evaluate_amu`."""
    run = Path(run_dir or Path("runs") / recipe.name)
    aside = Quarantine(run / "quarantine.jsonl", recipe.max_bad_share)
    place = _place(recipe, "instructions")
    asked = {kind: loaders.load_following(place, kind, aside) for kind in recipe.kinds}
    votes = loaders.load_selection(_place(recipe, "selection"), aside)
    judge, settings, words = _start(recipe, run, aside)
    prompts = {f"{kind}/{i.id}": i.prompt for kind in asked for i in asked[kind]}
    prompts |= {f"select/{row.id}": row.prompt for row in votes}
    picks, made = _outputs(recipe, prompts, words, run, say)
    follow, problems = {}, {}
    for kind, some in asked.items():
        say(f"judging {len(some)} outputs of {kind}")
        outputs = {i.id: made[f"{kind}/{i.id}"].get(kind) for i in some}
        place = run / f"grades-{kind}.jsonl"
        given = some, outputs, judge, place, words
        found = following.evaluate_following(*given, settings=settings)
        follow[kind] = found["follow"].get(kind, scores.mean([]))
        problems |= {f"{why} ({kind})": n for why, n in found["problems"].items()}
    picked = {row.id: picks[f"select/{row.id}"] for row in votes}
    synergy, notes = dict.fromkeys(scores.PAIRS, scores.mean([])), []
    if recipe.scorer:
        named = isinstance(recipe.scorer, str)
        found = amg.evaluate_synergy(
            [_output(i, pick, made[f"select/{i}"]) for i, pick in picked.items()],
            _fits(recipe.scorer) if named else recipe.scorer,
            run / "synergy.jsonl",
            settings={"scorer": recipe.scorer if named else "a function"},
        )
        synergy = found["synergy"]
        problems |= found["problems"]
    else:
        notes.append(
            "synergy, and with it S_AMG, is left out: give --scorer a reward model of "
            "outputs that fit (an HF directory with a score head)."
        )
    select = amg.evaluate_selection(votes, picked)
    report = _summed(recipe, follow, synergy, select, notes)
    return _write(run, recipe, report, problems, aside, notes)


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report in lines a person reads."""
    lines = [
        f"{table + ' ' + name:<34} {scores.Mean(**mean)}"
        for table in ("dimensions", "select", "alphas", "follow", "synergy")
        for name, mean in report.get(table, {}).items()
    ]
    for name, value in report["totals"].items():
        lines.append(f"{name:<34} {'none' if value is None else f'{value:.3f}'}")
    lines += [f"{count} x {why}" for why, count in report["problems"].items()]
    lines += [f"note: {note}" for note in report["notes"]]
    if not report["complete"]:
        lines.append("not complete: start the same command again to ask what is left.")
    return lines


# --- data, judge, answers ---


def _place(recipe, field):
    """The folder of a published data set."""
    given, name = getattr(recipe, field), _HUB[field]
    if not (Path(given) / ("config.json" if field == "data" else "")).exists():
        raise FileNotFoundError(
            f"{field} is {given!r}, where there is no {name}. Get it there, `hf download "
            f"PKU-Alignment/{name} --repo-type dataset --local-dir {given}`, and unpack "
            f"its archives beside it; or give --{field} another folder."
        )
    return Path(given)


def _start(recipe, run, aside):
    """The judge, what its grades depend on, the templates; the run is marked as ours."""
    aside.close()
    judge = asking.open_judge(recipe.judge, run / "replies")
    open_run(run, dataclasses.replace(recipe, judge=asking.named(recipe.judge)), _FREE)
    words = templates.load()
    said = {name: template.template for name, template in words.items()}
    settings = {"judge": asking.named(recipe.judge), "templates": digest(said)}
    return judge, settings, words


def _answers(recipe, prompts, run, say, name="", model=None):
    """{id: answer} of the model under test, or of a generator."""
    name, model = name or recipe.model.path, model or recipe.model
    if not callable(model):
        model = asking.stored_model(model, recipe.max_new_tokens, recipe.sampling)
    # With the prompt in it: one that has changed since is asked again.
    keys = {id: f"{id}#{digest(prompt)}" for id, prompt in prompts.items()}
    asked = {keys[id]: prompt for id, prompt in prompts.items()}
    found = asking.answer_all([(name, model)], asked, run / "answers.jsonl", 8, say)
    return {id: found[name, key] for id, key in keys.items()}


def _parts(response):
    """All parts of a response, of None none."""
    return parts_of(response.messages) if response else []


def _text(parts):
    return "".join(part.text or "" for part in parts if part.kind == "text")


def _outputs(recipe, texts, words, run, say):
    """Per prompt what was chosen (None = no answer), and the first part of each kind."""
    agent = {id for id in texts if recipe.agent and not id.startswith("text/")}
    prompts = {id: asking.user(text) for id, text in texts.items()}
    prompts |= {id: amg.selection_prompt(texts[id], words) for id in sorted(agent)}
    picks, made, wanted = {}, {}, collections.defaultdict(dict)
    for id, response in _answers(recipe, prompts, run, say).items():
        parts = _parts(response)
        picks[id] = amg.selection_of(parts) if response else None
        if response and id in agent:
            picks[id], parts = amg.parse_selection(_text(parts)), []
            for kind in picks[id].fields.keys() - {"text"}:
                # What an agent writes for a picture is for a clip, where one is due.
                maker = "video" if (kind, id[:6]) == ("image", "video/") else kind
                wanted[maker][id] = asking.user(picks[id].fields[kind])
        made[id] = {part.kind: part for part in reversed(parts)}
        if text := picks[id] and picks[id].fields.get("text"):
            made[id]["text"] = Part("text", text=text)
    for kind, model in recipe.generators:
        model = model if callable(model) else ModelSource(model)
        named = f"{kind} generator", model
        for id, response in _answers(recipe, wanted[kind], run, say, *named).items():
            found = [part for part in _parts(response) if part.kind == kind]
            made[id] |= {kind: found[0]} if found else {}
    return picks, made


def _output(id, pick, made):
    """One instruction's chosen parts, as synergy looks at them."""
    parts, lacking = {}, {}
    for kind in pick.fields if pick else ():
        name = {"text": "T", "image": "V", "audio": "A"}[kind]
        part = made.get(kind) or (made.get("video") if kind == "image" else None)
        if part is None:
            lacking[name] = f"{kind} was chosen, none was made"
        else:
            parts[name] = part
    return amg.Output(id, parts, lacking)


# --- scores ---


def _fits(path) -> amg.Scorer:
    """A reward model's score of two parts side by side, through a sigmoid."""
    bundle = load_model(ModelSource(path))

    def fit(one, two):
        both = Response((Message("assistant", (one, two)),))
        example = Example("pair", asking.user("Do these fit together?"), (both,))
        return 1 / (1 + math.exp(-float(score_responses(bundle, [example], 1)[0][0])))

    return fit


def _summed(recipe, follow, synergy, select, notes):
    none = scores.mean([])
    levels = {"T": follow.get("text", none), "A": follow.get("audio", none)}
    levels["V"] = scores.vision(follow.get("image", none), follow.get("video", none))
    understood: dict[str, Any] = dict.fromkeys(scores.DIMENSIONS)
    if (place := Path(recipe.amu_report)).is_file():
        theirs = json.loads(place.read_text("utf-8"))["dimensions"]
        understood = {name: theirs[name]["value"] for name in scores.DIMENSIONS}
    else:
        notes.append(
            f"no overall score, as there is no {place}: run `alanything evaluate "
            "configs/amu.py`, or give --amu-report."
        )
    alpha, alphas = select["alpha"], select["alphas"]
    return {
        "select": {"alpha": alpha},
        "alphas": alphas,
        "follow": levels | follow,
        "synergy": synergy,
        "chosen": {"counts": select["chosen"], "defaulted": select["defaulted"]},
        "totals": scores.summary(understood, levels, synergy, alpha, alphas),
    }


def _write(run, recipe, report, problems, aside, notes=()):
    report = report | {
        "complete": not any(why.startswith("judge:") for why in problems),
        "problems": problems,
        "set_aside": len(aside.entries),
        "notes": list(notes),
        "model": recipe.model.path,
        "judge": asking.named(recipe.judge),
    }
    whole = json.loads(json.dumps(report, default=dataclasses.asdict))
    write_json(run / "report.json", whole)
    return whole
