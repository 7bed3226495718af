"""`demo`: from nothing to an aligned any-to-any model and a page to look at.

base on the playground -> critic -> LLF pairs -> alignment, and binary DPO beside it ->
evaluation on new prompts -> Hugging Face export -> report.html
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alanything_jax import experiment as recipes
from alanything_jax import hub
from alanything_jax.data import store, views
from alanything_jax.evaluation import critic as critics
from alanything_jax.evaluation import playground as scores
from alanything_jax.generation.generate import generate
from alanything_jax.generation.sampler import Sampling
from alanything_jax.hub.verify import verify
from alanything_jax.pipelines.llf import LLF, llf, trained
from alanything_jax.pipelines.report import write_page
from alanything_jax.playground import oracle, tasks
from alanything_jax.training.run_dir import RunDir, write_json

Say = Callable[[str], None]
# Fixed before any result was looked at.
TEST_SEED, TEST_PROMPTS, ERROR, GALLERY = 2026, 1024, 0.1, 24


def recipe(name: str = "configs/llf_playground.py") -> Any:
    """A recipe of the repository, from the clone or from where setup.py installed it."""
    clone = Path(__file__).parents[2] / name
    installed = Path(sys.prefix) / "share" / "alanything_jax" / name
    return recipes.load(clone if clone.exists() else installed)


def demo(
    run_dir: str | Path = "runs/demo", *, tiny: bool = False, say: Say = print
) -> dict[str, Any]:
    """Run everything, or go on where the run directory stopped.

    Args:
      run_dir: where everything goes; `export/` and `report.html` in it.
      tiny: the same on a smaller model and fewer prompts, to see that it works.

    Returns:
      The report, also at `<run_dir>/report.json`.
    """
    run, whole = RunDir(Path(run_dir)), recipe()
    whole = whole.tiny() if tiny else whole
    minutes: dict[str, float] = {}
    clock = _Clock(minutes)
    say("1/5 base model, critic, feedback, pairs, alignment")
    result = llf(whole, run.path, say)
    clock("training and feedback")
    say("2/5 binary preferences, as many pairs and steps, from the same base")
    binary = trained(binary_arm(whole, run.path), run.path / "binary", say)
    clock("binary DPO")
    say("3/5 scores on new prompts, by the oracle")
    bundles = {
        "base": hub.load(run.path / "base" / "export"),
        "aligned": hub.load(result.policy),
        "binary": hub.load(binary.path),
    }
    prompts = scores.test_prompts(64 if tiny else TEST_PROMPTS, TEST_SEED)
    report, answers = evaluate(bundles, prompts, whole, say)
    report["critic"] = critics.report(
        hub.load(run.path / "critic" / "export"),
        list(tasks.attempts(64 if tiny else 512, TEST_SEED, "test")),
        views.templates(whole.templates),
    )
    clock("evaluation")
    say("4/5 export")
    if not run.export.exists():
        hub.save(bundles["aligned"], run.export, notes={"recipe": whole.name})
    checks = verify(run.export)
    report["verify"] = [[c.name, c.passed, c.detail] for c in checks]
    report["yield"], report["recipe"] = result.table, facts(whole, run.path, prompts)
    clock("export")
    report["minutes"] = minutes
    say("5/5 the page")
    gallery = make_gallery(bundles, answers, prompts[:GALLERY], run.path, whole)
    write_json(run.path / "report.json", report)
    write_page(run.path / "report.html", report, curves(run.path), gallery)
    return report


class _Clock:
    """Minutes between calls, by name."""

    def __init__(self, minutes):
        self.minutes, self.last = minutes, time.perf_counter()

    def __call__(self, name):
        now = time.perf_counter()
        self.minutes[name] = round((now - self.last) / 60, 2)
        self.last = now


def binary_arm(whole: LLF, run: Path) -> recipes.Experiment:
    """DPO on as many pairs, by a person who errs now and then; not the model's own."""
    pairs = len(store.read(run / "round-0" / "pairs"))
    change = dataclasses.replace
    return change(
        whole.align,
        name="binary",
        model=change(whole.align.model, path=str(run / "base" / "export")),
        data=change(whole.align.data, path=f"playground:pairs/{pairs}/11/{ERROR}"),
    )


def evaluate(bundles, prompts, whole, say):
    """Figures at temperatures 0 and 1, and the answers at 1 by arm."""
    report, answers = {}, {}
    for name, temperature in (("T1", 1.0), ("T0", 0.0)):
        arms = {
            arm: scores.measure(
                bundle,
                prompts,
                temperature=temperature,
                seed=TEST_SEED,
                max_new_tokens=whole.max_new_tokens,
                batch_size=whole.shard_rows,
            )
            for arm, bundle in bundles.items()
        }
        report[name] = scores.compare(arms)
        over = arms["aligned"].values - arms["binary"].values
        report[name]["over_binary"] = scores.interval(over)
        if name == "T1":
            answers = {arm: found.answers for arm, found in arms.items()}
        for arm in arms:
            mean, low, high = report[name][arm]
            say(f"  {name} {arm:<8} {mean:.3f}  [{low:.3f}, {high:.3f}]")
        mean, low, high = report[name]["gain"]
        say(f"  {name} gain     {mean:+.3f}  [{low:+.3f}, {high:+.3f}]")
    return report, answers


def facts(whole: LLF, run: Path, prompts: Any) -> dict[str, Any]:
    """What a reader needs to repeat it."""
    return {
        "recipe": whole.name,
        "seed": whole.seed,
        "model": whole.base.model.path if whole.base else whole.align.model.path,
        "base steps": whole.base.train.steps if whole.base else 0,
        "prompts for feedback": whole.prompts,
        "pairs": len(store.read(run / "round-0" / "pairs")),
        "verified by": whole.verify,
        "alignment steps": whole.align.train.steps,
        "learning rate": whole.align.optimizer.learning_rate,
        "test prompts": len(prompts),
        "test seed": TEST_SEED,
        "annotator's error rate in binary pairs": ERROR,
    }


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of every training run of the demo."""
    places = {
        "base": run / "base",
        "critic": run / "critic",
        "align": run / "round-0" / "align",
        "binary": run / "binary",
    }
    out = {}
    for name, place in places.items():
        lines = (place / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        out[name] = [(r["step"], r["loss"]) for r in records if "loss" in r]
    return out


def make_gallery(bundles, answers, prompts, run, whole):
    """Prompts with the answers before and after, and the critic's words between."""
    words = views.templates(whole.templates)
    before = [a.response for a in answers["base"][: len(prompts)]]
    after = [a.response for a in answers["aligned"][: len(prompts)]]

    def written(bundle, asked, tokens, temperature):
        out = generate(
            bundle,
            asked,
            max_new_tokens=tokens,
            sampling=Sampling(temperature),
            batch_size=len(asked),
        )
        return [some[0] for some in out]

    asked = [views.ask_critique(e, y, words) for e, y in zip(prompts, before)]
    critic = hub.load(run / "critic" / "export")
    said = written(critic, asked, whole.max_critique_tokens, 0.0)
    asked = [
        views.ask_refinement(e, y, c.text, words)
        for e, y, c in zip(prompts, before, said)
    ]
    refined = written(bundles["base"], asked, whole.max_new_tokens, whole.temperature)
    return [
        {
            "task": oracle.goal_of(example)["task"],
            "prompt": example.prompt,
            "before": before[n],
            "after": after[n],
            "critique": said[n].text,
            "refined": refined[n].response,
            "score_before": oracle.rule(example, before[n]),
            "score_after": oracle.rule(example, after[n]),
        }
        for n, example in enumerate(prompts)
    ]
