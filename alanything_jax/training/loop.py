"""The loop: every algorithm, one step after another, resumable. `online` feeds it, too.

data -> frozen roles -> annotate -> M x accumulate -> apply -> metrics -> checkpoint
"""

from __future__ import annotations

import dataclasses
import functools
import math
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.data import pipeline
from alanything_jax.evaluation import heldout
from alanything_jax.experiment import Experiment
from alanything_jax.sharding import distributed
from alanything_jax.training import goodput, run_dir, step
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import parts as compiled
from alanything_jax.training.prepare import Prepared, prepare
from alanything_jax.training.writers import open_writers

Say = Callable[[str], None]
# Step number, from 1, and the state that it finds -> what it trains on.
Feed = Callable[[int, step.State], pipeline.StepData]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where steps come from.

    Attributes:
      prepared: model and parameters. steps: of the run.
      feed: called with the first step's number; gives the feed, used in step order.
      settle: called before a checkpoint: what is under way is then on disk.
    """

    prepared: Prepared
    steps: int
    feed: Callable[[int], Feed]
    settle: Callable[[], None] = lambda: None


def num_steps(experiment: Experiment, num_groups: int) -> int:
    """Optimizer steps of a run: as given, or whole steps of the asked-for epochs."""
    if experiment.train.steps is not None:
        return experiment.train.steps
    per_step = experiment.train.groups_per_step
    return max(1, math.floor(experiment.train.epochs * num_groups / per_step))


def train(
    experiment: Experiment, directory: str | Path | None = None, say: Say = print
) -> run_dir.RunDir:
    """Run a recipe to its end, or go on where its run directory stopped.

    Args:
      experiment: the recipe.
      directory: the run directory; default `runs/<name>`.
      say: gets a line of text for each stage.

    Returns:
      The run directory, with metrics, checkpoints and quarantine in it.

    Raises:
      ValueError: the directory belongs to another config, or the data does not fit.
      FloatingPointError: a loss or gradient is not finite; names step and records.
      Preempted: a SIGTERM came; what was reached is saved, and the same call goes on.
    """
    return run_steps(experiment, directory, say, from_data)


def from_data(experiment: Experiment, run: run_dir.RunDir, say: Say) -> Source:
    """Steps of the recipe's data."""
    kept = run.path / "reference" if run.bucket else None
    prepared = prepare(experiment, run.path / "quarantine.jsonl", say, kept)
    run_dir.push(
        run
    )  # What the reference says took time, and there is no checkpoint yet.
    total = num_steps(experiment, len(prepared.train.groups))

    def feed(first):
        steps = prepared.train.steps(first - 1, total)
        return lambda number, state: next(steps)

    return Source(prepared, total, feed)


def run_steps(
    experiment: Experiment,
    directory: str | Path | None,
    say: Say,
    make: Callable[[Experiment, run_dir.RunDir, Say], Source],
) -> run_dir.RunDir:
    """What `train` says, from the source that `make` gives."""
    say = say if distributed.is_primary() else (lambda line: None)
    began = time.time()
    run = run_dir.open_run(directory or Path("runs") / experiment.name, experiment)
    source = make(experiment, run, say)
    prepared, total = source.prepared, source.steps
    transformation = optimizers.make(experiment.optimizer, total, prepared.rates)
    with (
        jax.set_mesh(prepared.mesh),
        checkpoints.manager(run.checkpoints, experiment.train.keep) as saved,
    ):
        state = compiled.initial_state(
            prepared.trainable, prepared.shardings, prepared.mesh, transformation
        )
        start = distributed.gather(checkpoints.latest_step(saved) or 0)[0]
        if start:
            state = checkpoints.restore(saved, state, start)
            say(f"resuming {run} after step {start} of {total}")
        kept = (run.metrics, run.timing, run.samples, run.path / "quarantine.jsonl")
        for path in kept:
            run_dir.cut_after(path, start if start else -1)
        parts = compiled.compile_parts(prepared, transformation)
        steps = range(start, total)
        with goodput.record(run.goodput, start) as record:
            record.spent["init"] = time.time() - began
            _loop(experiment, run, source, parts, state, saved, steps, record)
    run_dir.push(run)
    say(f"{total} steps done; metrics in {run.metrics}")
    if distributed.is_primary():
        say(goodput.summary(run.goodput))
    return run


def _loop(experiment, run, source, parts, state, saved, steps, record):
    """Steps `steps`, with evaluation, metrics, profile and checkpoints around them."""
    prepared = source.prepared
    options, total, primary = experiment.train, steps.stop, distributed.is_primary()
    schedule = optimizers.learning_rate(experiment.optimizer, total)
    evaluate = functools.partial(heldout.evaluate, prepared, parts)
    first, last = _profiled(options.profile_steps)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        disable=not primary,
    )
    sinks = (primary and options.tensorboard, primary and options.wandb)
    with (
        progress,
        open_writers(run.path, experiment.name, *sinks) as write,
        distributed.preemption() as preempted,
    ):
        task = progress.add_task("train", total=total, completed=steps.start, news="")
        if steps.start == 0 and prepared.heldout:
            with record.span("evaluation"):
                run_dir.append(run.metrics, {"step": 0} | evaluate(state.trainable))
        feed = source.feed(steps.start + 1)
        for number in range(steps.start + 1, total + 1):
            waited = time.perf_counter()
            with record.span("data wait"):
                data = feed(number, state)
            began = time.perf_counter()
            if number == first and primary:
                jax.profiler.start_trace(str(run.path / "profile"))
            rate = float(schedule(data.step))
            with record.span("step"):
                state, numbers = compiled.run_step(parts, prepared, state, data)
            if number == last and primary:
                jax.profiler.stop_trace()
            check_finite(numbers, data)
            took = time.perf_counter() - began
            numbers |= {
                "learning_rate": rate,
                "tokens": data.tokens,
                "microbatches": len(data.microbatches),
                "fill": round(data.fill, 4),
                **data.facts,
            }
            due = options.evaluate_every and number % options.evaluate_every == 0
            if prepared.heldout and (due or number == total):
                with record.span("evaluation"):
                    numbers |= evaluate(state.trainable)
            run_dir.append(run.metrics, {"step": number} | numbers)
            run_dir.append(
                run.timing, _timing(number, took, began - waited, data.tokens)
            )
            write(number, numbers)
            progress.update(task, completed=number, news=_news(numbers))
            stop = preempted() and number < total
            if number % options.checkpoint_every == 0 or number == total or stop:
                record.line(number)
                with record.span("checkpoint"):
                    source.settle()
                    run_dir.push(run)
                    checkpoints.save(saved, number, state)
                    if stop or number == total:
                        checkpoints.wait(saved, number)
            record.line(number)
            if stop:
                distributed.halt(
                    f"asked to stop: step {number} of {total} is saved in {run}. The "
                    "same command goes on from there."
                )


def _profiled(text):
    """First and last step to trace, from "10:13"; none from ""."""
    if not text:
        return None, None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ValueError(
            f"train.profile_steps {text!r}: write FIRST:LAST, such as 10:13."
        )
    return int(first), int(last)


def check_finite(numbers: Mapping[str, float], data: pipeline.StepData) -> None:
    """Stop on a loss or gradient that is not finite, naming step and records."""
    advice = (
        f"Its records are {list(data.ids)}. Look at them with `alanything data inspect`, "
        "lower optimizer.learning_rate, or compute in float32"
    )
    run_dir.check_finite(numbers, data.step + 1, advice)


def _timing(number, took, waited, tokens):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step": number,
        "seconds": round(took, 4),
        "data_wait_seconds": round(waited, 4),
        "tokens_per_second": round(tokens / took, 1),
        "peak_memory_mib": peak // 1024,
    }


def _news(numbers):
    """The two numbers worth watching."""
    shown = [f"loss {numbers['loss']:.4f}"]
    if "reward_accuracy" in numbers:
        shown.append(f"accuracy {numbers['reward_accuracy']:.2f}")
    if "reward" in numbers:
        shown.append(f"reward {numbers['reward']:.3f}")
    return "  ".join(shown)
