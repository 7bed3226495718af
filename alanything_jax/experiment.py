"""A recipe: one frozen tree of dataclasses, loaded from a Python file, dumped as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal

from alanything_jax.algorithms.base import CURRENT, RECORDED, TEACHER, Algorithm
from alanything_jax.data.groups import Data
from alanything_jax.data.views import LABELLED
from alanything_jax.hub.source import ModelSource
from alanything_jax.models.lora import Lora
from alanything_jax.rewards import rules
from alanything_jax.rewards.model import TrainedReward
from alanything_jax.training.optimizer import Optimizer
from alanything_jax.training.rollout import Rollout
from alanything_jax.training.step import Compute

# The model of `--tiny` where the data hold the playground's media.
PLAYGROUND = "playground:48x2"


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how often.

    Attributes:
      steps: optimizer steps; None = `epochs` over the data.
      groups_per_step: G of a step; its membership never changes to fill rows.
      checkpoint_every, keep: steps between checkpoints, how many stay.
      evaluate_every: steps between held-out evaluations; 0 = first and last only.
      profile_steps: "10:13" writes an XProf trace of those steps.
    """

    steps: int | None = None
    epochs: float = 1.0
    groups_per_step: int = 8
    checkpoint_every: int = 50
    keep: int = 2
    evaluate_every: int = 0
    profile_steps: str = ""
    tensorboard: bool = True
    wandb: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole recipe.

    Attributes:
      name: names the run directory, `runs/<name>`.
      algorithm: a dataclass of `alanything_jax.algorithms`.
      adapter: train this LoRA instead of the weights; None trains the weights.
      reference: where reference log-probs come from: computed once and "cached", a
        "live" second copy of the weights, or the policy with its "adapter_off".
      rollout: learn from answers that the policy itself gives to the data's prompts.
      value: what value models start from, such as a trained reward model; None = `model`.
      teacher: whose distribution is distilled: any size, but the model's tokenizer.
    """

    name: str
    model: ModelSource
    data: Data
    algorithm: Algorithm
    adapter: Lora | None = None
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    compute: Compute = Compute()
    reference: Literal["cached", "live", "adapter_off"] = "cached"
    rollout: Rollout | None = None
    value: ModelSource | None = None
    teacher: ModelSource | None = None
    seed: int = 0

    def __post_init__(self):
        if self.reference == "adapter_off" and self.adapter is None:
            raise ValueError(
                'reference="adapter_off" needs an adapter to switch off: set '
                'adapter=Lora(...), or choose "cached" or "live".'
            )
        learns = TEACHER in self.algorithm.roles
        if learns != (self.teacher is not None) or (
            learns and self.reference != "live"
        ):
            raise ValueError(
                f"{type(self.algorithm).__name__} with teacher={self.teacher} and "
                f'reference="{self.reference}": distillation, and it alone, needs '
                'teacher=ModelSource(...) and reference="live".'
            )
        if self.model.quantize and self.adapter is None:
            raise ValueError(
                f"model.quantize={self.model.quantize!r} keeps the weights in integers, "
                "which cannot train: set adapter=Lora(...), or model.quantize=''."
            )
        if self.data.stream:
            _check_stream(self)
        _check_online(self)


def _check_online(experiment):
    """Raises ValueError: rollouts and algorithm do not fit."""
    roles, rollout = set(experiment.algorithm.roles), experiment.rollout
    recorded = roles & set(RECORDED)
    name = type(experiment.algorithm).__name__
    if rollout is None:
        if recorded:
            raise ValueError(
                f"{name} learns from what the policy itself answers: set rollout=Rollout("
                "rewards=...)."
            )
        return
    if "reference" in roles and experiment.reference == "cached":
        raise ValueError(
            'no log-prob of answers yet to be given is "cached": set reference="live", or '
            'reference="adapter_off" with an adapter.'
        )
    compared = recorded or rollout.best_and_worst
    if not (compared or TEACHER in roles):
        raise ValueError(
            f"{name} compares chosen and rejected answers: set "
            "rollout.best_and_worst=True, or use an algorithm of rewards such as GRPO."
        )
    scored = rollout.environment or (rollout.rewards and rollout.rewards.terms)
    for wrong, words in (
        (
            (compared or rollout.dynamic) and not scored,
            "compares answers by their rewards, and rollout.rewards is empty: set "
            "rollout.rewards=Rewards((Term(...),)).",
        ),
        (
            rollout.samples < experiment.algorithm.min_responses,
            f"compares {experiment.algorithm.min_responses} answers or more, of which "
            f"there are rollout.samples={rollout.samples}: raise it.",
        ),
        (
            "cost" in experiment.algorithm.numbers and rollout.cost is None,
            "bounds a cost that nothing tells: set rollout.cost=Rewards((Term(...),)).",
        ),
        (
            rollout.ptx_groups > 0
            and not getattr(experiment.algorithm, "ptx_weight", TEACHER in roles),
            f"imitates nothing, yet rollout.ptx_groups={rollout.ptx_groups}: give "
            "PPO(ptx_weight=...), or rollout.ptx_groups=0.",
        ),
    ):
        if wrong:
            raise ValueError(f"{name} {words}")
    if experiment.data.stream or experiment.data.heldout_groups:
        raise ValueError(
            "rollouts read all prompts first, and hold none out: set "
            "data.stream=0 and data.heldout_groups=0."
        )


def _check_stream(experiment):
    """Raises ValueError: the recipe asks for what only data read beforehand can give."""
    data, roles = experiment.data, set(experiment.algorithm.roles)
    frozen = roles - {*experiment.algorithm.trains, CURRENT}
    cached = frozen and experiment.reference == "cached"
    for wrong, advice in (
        (experiment.train.steps is None, "it has no epochs: set train.steps"),
        (data.heldout_groups, "hold out by data.heldout_path, not data.heldout_groups"),
        (data.view == "mismatched", 'the view "mismatched" draws from all the data'),
        (cached, 'nothing is "cached": set reference "live" or "adapter_off"'),
    ):
        if wrong:
            said = f"data.stream={data.stream} reads records as they come; {advice}"
            raise ValueError(f"{said}, or set data.stream=0.")


def load(path: str | Path) -> Experiment:
    """The experiment that a recipe file's `config()` returns.

    Raises:
      FileNotFoundError, ValueError: no such file, or it defines no `config`.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise FileNotFoundError(
            f"no recipe at {path}. Give a Python file; configs/ holds {near}."
        )
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if "config" not in vars(module):
        raise ValueError(f"{path} defines no `config() -> Experiment`: add one.")
    return module.config()


def tiny(experiment: Experiment) -> Experiment:
    """The same recipe made small: random model, byte tokenizer, generated rows."""
    change = dataclasses.replace
    made = all(p.startswith("playground:") for p in experiment.data.paths)
    paths = tuple(map(tiny_path, experiment.data.paths)) if made else ("generated",)
    stream = experiment.data.stream
    held = experiment.data.heldout_groups or experiment.data.heldout_path
    heldout = 12 if held and not stream else 0
    # Generated rows are pairs: they have labels, but no critiques.
    view = experiment.data.view if experiment.data.view in LABELLED else "answers"
    data = change(
        experiment.data if made else Data("generated", view=view, stream=stream),
        path=paths if len(paths) > 1 else paths[0],
        heldout_path=None,
        heldout_groups=heldout,
        max_group_tokens=128,
        max_bad_share=0.0,
    )
    train = change(
        experiment.train,
        steps=60,
        groups_per_step=8,
        checkpoint_every=5,
        evaluate_every=0,
    )
    model = PLAYGROUND if made else tiny_model(experiment.model)
    compute = change(
        experiment.compute,
        row_tokens=256,
        # The eight groups of a step fill few of a real recipe's rows.
        rows_per_microbatch=0,
        block=64,
        head_chunk=128,
        mesh=(),
    )
    if compute.attention in ("flash", "cudnn"):
        # A CPU would interpret a TPU's kernel, very slowly; it has no NVIDIA card's.
        compute = change(compute, attention="blockwise")
    adapter = experiment.adapter and change(experiment.adapter, rank=4, alpha=8.0)
    rollout = experiment.rollout and _tiny_rollout(experiment.rollout, model)
    return change(
        experiment,
        model=change(
            experiment.model,
            path=model,
            sha256="",
            codecs=("playground",) if experiment.model.codecs else (),
        ),
        data=data,
        train=train,
        adapter=adapter,
        compute=compute,
        rollout=rollout,
        value=None,
        teacher=experiment.teacher
        and change(experiment.teacher, path=model, sha256=""),
        # Rates name layers that a model of two layers may not have.
        optimizer=change(experiment.optimizer, learning_rate=2e-3, rates=()),
    )


def _tiny_rollout(rollout, model):
    """Fewer and shorter answers, and trained rewards of a random model."""
    ptx = rollout.ptx and Data("generated", max_group_tokens=128)
    return dataclasses.replace(
        rollout,
        samples=min(rollout.samples, 4),
        max_new_tokens=min(rollout.max_new_tokens, 24),
        rewards=_tiny_rewards(rollout.rewards, model),
        cost=rollout.cost and _tiny_rewards(rollout.cost, model),
        ptx=ptx,
        replay="",
    )


def _tiny_rewards(rewards, model):
    """Trained rewards of a random model; generated rows have letters to be right about."""
    if rewards is None:
        return None

    def small(term):
        reward = term.reward
        if isinstance(reward, TrainedReward):
            reward = TrainedReward(ModelSource(model))
        elif isinstance(reward, rules.Exact | rules.Choice | rules.Math):
            reward = rules.Similarity()
        return dataclasses.replace(term, reward=reward)

    return dataclasses.replace(rewards, terms=tuple(map(small, rewards.terms)))


def tiny_path(path: str) -> str:
    """A data source made small: less of the playground, or generated rows."""
    if not path.startswith("playground:"):
        return "generated"
    name, _, *rest = path.split("/")
    return "/".join([name, "96", *rest])


def tiny_model(source: ModelSource) -> str:
    """A random model of the same family."""
    known = source.path.startswith("playground:")
    return PLAYGROUND if known else f"tiny:{source.family}"


def to_json(value: Any) -> Any:
    """A JSON-able picture of a recipe; classes and functions by their import path."""
    if dataclasses.is_dataclass(value):
        fields = {
            f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return {"type": _import_path(type(value)), **fields}
    if callable(value):
        return {"function": _import_path(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any) -> Any:
    """The recipe that `to_json` pictured.

    Raises ValueError: it names something outside this package, which is never imported.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        return _imported(value["function"])
    fields = {name: from_json(item) for name, item in value.items() if name != "type"}
    return _imported(value["type"])(**fields)


def _import_path(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def _imported(path):
    module, _, name = path.rpartition(".")
    if not module.startswith("alanything_jax."):
        raise ValueError(f"config.json names {path}, which is outside this package.")
    return getattr(importlib.import_module(module), name)


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted fields in which two JSON pictures differ, as `path: theirs -> ours`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        return [
            line
            for key in keys
            for line in differences(ours.get(key), theirs.get(key), f"{path}.{key}")
        ]
    return [] if ours == theirs else [f"{path[1:]}: {theirs!r} -> {ours!r}"]
