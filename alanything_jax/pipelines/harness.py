"""Standard benchmarks: a model through lm-evaluation-harness, or lmms-eval for media."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from alanything_jax import hub
from alanything_jax.evaluation.harness import lm_eval_model, lmms_eval_model
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.training.restore import load_run
from alanything_jax.training.run_dir import write_json


@dataclasses.dataclass(frozen=True)
class Harness:
    """A model, and tasks by the names that `lm-eval ls tasks` prints.

    Attributes:
      model: what `ModelSource.path` may name, or a run directory, of which the newest
        checkpoint is taken.
      package: whose tasks: lm_eval's are of text, lmms_eval's of pictures and the like.
      include_path: a folder with tasks of your own; "" = none.
      num_fewshot: examples before each question; -1 = as the task says.
      limit: of the first so many records of each task; 0 = all.
      chat: put lm_eval's prompts into the model's chat template, for instruction-tuned
        models; lmms_eval's always are.
      gen_kwargs: put over the tasks' generation_kwargs, such as "max_gen_toks=64".
      batch_size: rows read or decoded together.
    """

    model: str
    tasks: tuple[str, ...]
    package: Literal["lm_eval", "lmms_eval"] = "lm_eval"
    name: str = "lm_eval"
    include_path: str = ""
    num_fewshot: int = -1
    limit: int = 0
    chat: bool = False
    gen_kwargs: str = ""
    batch_size: int = 32
    dtype: str = "float32"
    seed: int = 0


def evaluate_harness(
    recipe: Harness,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the harness; its results are also `<run_dir>/results.json`, beside samples.json.

    samples.json holds each record with what the model was asked and said.

    Raises:
      ImportError: the package is not installed.
      ValueError: no such task, or one asks for what our generation does not have.
    """
    bundle, text = _load(recipe), recipe.package == "lm_eval"
    make = lm_eval_model if text else lmms_eval_model
    model = make(bundle, recipe.batch_size, recipe.seed)
    # The second grew out of the first, and has its names.
    evaluator, tasks, utils = (
        importlib.import_module(f"{recipe.package}.{part}")
        for part in ("evaluator", "tasks", "utils")
    )
    run = Path(run_dir or Path("runs") / recipe.name)
    run.mkdir(parents=True, exist_ok=True)
    results = evaluator.simple_evaluate(
        model,
        tasks=list(recipe.tasks),
        task_manager=tasks.TaskManager(include_path=recipe.include_path or None),
        num_fewshot=None if recipe.num_fewshot < 0 else recipe.num_fewshot,
        limit=recipe.limit or None,
        apply_chat_template=recipe.chat and text,
        gen_kwargs=recipe.gen_kwargs or None,
    )
    results["config"]["model"] = bundle.source
    plain = json.loads(json.dumps(results, default=utils.handle_non_serializable))
    write_json(run / "samples.json", plain.pop("samples"))
    write_json(run / "results.json", plain)
    say(utils.make_table(results))
    if results.get("groups"):
        say(utils.make_table(results, "groups"))
    return plain


def _load(recipe) -> hub.Bundle:
    if (Path(recipe.model) / "checkpoints").is_dir():
        return load_run(recipe.model).merged()
    return load_model(ModelSource(recipe.model, param_dtype=recipe.dtype))
