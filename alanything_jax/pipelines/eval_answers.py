"""Short answers by exact match: what models say, greedily, to held-out questions."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data import groups
from alanything_jax.data.groups import Data
from alanything_jax.evaluation.heldout import mcnemar, wilson
from alanything_jax.generation.generate import generate
from alanything_jax.hub.source import ModelSource, load_model
from alanything_jax.schema import Example, parts_of
from alanything_jax.training.run_dir import write_json


@dataclasses.dataclass(frozen=True)
class AnswerEval:
    """Which models, on which questions.

    Attributes:
      models: (name, HF directory) pairs; the others are compared with the first.
      data: questions, of which the chosen response is the right answer.
      questions: of the first so many; 0 = all.
    """

    models: tuple[tuple[str, str], ...]
    data: Data
    name: str = "answers"
    questions: int = 0
    max_new_tokens: int = 8
    batch_size: int = 256

    def tiny(self) -> AnswerEval:
        """The same on generated text, by small random models."""
        models = tuple((name, "tiny:llama") for name, _ in self.models)
        change = {"models": models, "data": Data("generated"), "questions": 16}
        return dataclasses.replace(self, **change, batch_size=16)


def evaluate_answers(
    recipe: AnswerEval,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Ask every model every question; the report is also `<run_dir>/report.json`.

    An answer is right if it ended by itself and its words are the chosen response's.

    Returns:
      "blind": the share of right answers at best without looking at media, which is to
      give each text its commonest answer; per model "accuracy" (with a 95% Wilson
      interval: [share, low, high]), the same by "kind" where records have one, and
      "mcnemar", the exact p-value of its difference from the first model.

    Raises ValueError: a record cannot be read, or none has a chosen response.
    """
    run = Path(run_dir or Path("runs") / recipe.name)
    run.mkdir(parents=True, exist_ok=True)
    asked = _questions(recipe)
    wanted = [_words(e.responses[e.feedback.chosen or 0].messages) for e in asked]
    kinds = [str(e.extra.get("kind", "all")) for e in asked]
    report: dict[str, Any] = {"blind": _figures(_blind(asked, wanted)), "models": {}}
    say(f"{len(asked)} questions; without media at best {report['blind'][0]:.3f}")
    first = None
    for name, path in recipe.models:
        right = _right(recipe, path, asked, wanted)
        first = right if first is None else first
        where = {
            kind: np.array([k == kind for k in kinds]) for kind in sorted({*kinds})
        }
        report["models"][name] = {
            "path": path,
            "accuracy": _figures(right),
            "kinds": {kind: _figures(right[some]) for kind, some in where.items()},
            "mcnemar": mcnemar(first, right),
        }
        say(f"{name}: {wilson(int(right.sum()), len(right))}")
    write_json(run / "report.json", report)
    return report


def _questions(recipe: AnswerEval) -> list[Example]:
    data = recipe.data
    how = (data.format, data.columns, data.sha256, data.subset, data.media_root)
    out = []
    for path in data.paths:
        for row, example in groups.examples(path, *how):
            if isinstance(example, Exception):
                raise ValueError(f"{path}, row {row}: {example}") from example
            if recipe.questions and len(out) == recipe.questions:
                break
            out.append(example)
    if not all(example.responses for example in out):
        raise ValueError(f"{data.paths}: a record has no answer to compare with.")
    return out


def _right(recipe, path, asked, wanted) -> np.ndarray:
    """[n] bool."""
    answers = generate(
        load_model(ModelSource(path)),
        [example.prompt for example in asked],
        max_new_tokens=recipe.max_new_tokens,
        batch_size=recipe.batch_size,
    )
    said = [(some[0].finished, some[0].text.split()) for some in answers]
    return np.array([end and s == w for (end, s), w in zip(said, wanted, strict=True)])


def _blind(asked: Sequence[Example], wanted: Sequence[list[str]]) -> np.ndarray:
    """Which questions are right if each text gets its commonest answer."""
    seen: dict[str, collections.Counter] = {}
    texts = ["\n".join(m.text for m in example.prompt) for example in asked]
    for text, words in zip(texts, wanted, strict=True):
        seen.setdefault(text, collections.Counter())[" ".join(words)] += 1
    best = {text: counts.most_common(1)[0][0] for text, counts in seen.items()}
    return np.array(
        [best[t] == " ".join(w) for t, w in zip(texts, wanted, strict=True)]
    )


def _words(messages) -> list[str]:
    return " ".join(part.text or "" for part in parts_of(messages)).split()


def _figures(right: np.ndarray) -> list[float]:
    share = wilson(int(right.sum()), len(right))
    return [round(x, 4) for x in (share.value, share.low, share.high)]
