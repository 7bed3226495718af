"""Optax, schedules, and per-parameter learning rates and freezing by path pattern."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from alanything_jax.models.lora import num_inputs
from alanything_jax.models.params import matches


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optimizer settings.

    Attributes:
      name: "muon" (Jordan 2024; scaled as in arXiv:2502.16982, so that AdamW's rates fit)
        takes layers' kernels, and AdamW the rest.
      warmup_steps: steps n = 1, 2, ... of a linear warm-up train at n / (warmup_steps + 1)
        of the rate, none at 0; then `schedule` down to `final_share` of it.
      weight_decay: on kernels and tables, never on norms, biases.
      clip_norm: largest global gradient norm; 0 = no clipping.
      rates: `pattern=multiplier` on parameter paths such as `layers/29/attn/q/kernel`
        (`*` any characters, `|` or); the last that matches counts; 0 freezes.
    """

    name: Literal["adamw", "sgd", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 0
    final_share: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    rates: tuple[str, ...] = ()


def learning_rate(optimizer: Optimizer, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step."""
    peak, end = optimizer.learning_rate, optimizer.learning_rate * optimizer.final_share
    rest = max(1, total_steps - optimizer.warmup_steps)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(
            peak, rest, optimizer.final_share
        ),
    }[optimizer.schedule]()
    if not optimizer.warmup_steps:
        return after
    first = peak / (optimizer.warmup_steps + 1)
    warmup = optax.linear_schedule(first, peak, optimizer.warmup_steps)
    return optax.join_schedules([warmup, after], [optimizer.warmup_steps])


def multipliers(
    optimizer: Optimizer, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Per parameter what its learning rate is multiplied with: a scalar or [L, 1, ...].

    Args:
      shapes: path -> shape; stacked parameters have paths that start with `layers/`.

    Raises ValueError: a rule is not `pattern=number`, or matches nothing.
    """
    out = {path: _ones(path, shape) for path, shape in shapes.items()}
    for rule in optimizer.rates:
        pattern, _, number = rule.rpartition("=")
        try:
            factor = float(number)
        except ValueError as error:
            raise ValueError(
                f"optimizer.rates {rule!r}: write `pattern=number`."
            ) from error
        hit = False
        for path, value in out.items():
            for place, name in _names(path, value):
                if matches(pattern, name):
                    value[place], hit = factor, True
        if not hit:
            raise ValueError(
                f"optimizer.rates {rule!r} matches no parameter; paths look like "
                f"{sorted(n for p, v in out.items() for _, n in _names(p, v))[:8]}."
            )
    return out


def _ones(path, shape):
    if path.startswith("layers/"):
        return np.ones((shape[0],) + (1,) * (len(shape) - 1), np.float32)
    return np.ones((), np.float32)


def _names(path, value):
    """(index, name) of each learning rate: one a layer, or one for the parameter."""
    if value.ndim == 0:
        return [((), path)]
    rest = path.removeprefix("layers/")
    return [(n, f"layers/{n}/{rest}") for n in range(len(value))]


def make(
    optimizer: Optimizer, total_steps: int, rates: Mapping[str, np.ndarray]
) -> optax.GradientTransformation:
    """The transformation over a flat `{path: array}` dict whose keys `rates` has."""
    schedule = learning_rate(optimizer, total_steps)
    decay = {path: path.endswith(("/kernel", "/table")) for path in rates}
    core = {
        "adamw": lambda: optax.adamw(
            schedule,
            optimizer.b1,
            optimizer.b2,
            optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=decay,
        ),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(optimizer.weight_decay, decay),
            optax.sgd(schedule, optimizer.b1 or None),
        ),
        "adafactor": lambda: optax.adafactor(
            schedule,
            weight_decay_rate=optimizer.weight_decay or None,
            weight_decay_mask=decay,
        ),
        "muon": lambda: optax.contrib.muon(
            schedule,
            consistent_rms=0.2,
            weight_decay=optimizer.weight_decay,
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            muon_weight_dimension_numbers=_matrices,
        ),
    }[optimizer.name]()
    clip = optax.clip_by_global_norm(optimizer.clip_norm or float("inf"))
    live = {path: (rate != 0).astype(np.float32) for path, rate in rates.items()}
    return optax.chain(_times(live), clip, core, _times(rates))


def _matrices(params):
    """For Muon, which dims of a layer's kernel are inputs and outputs; None elsewhere."""
    out = {}
    for path, value in params.items():
        split = 1 + num_inputs(path.removesuffix("/kernel"))
        kernel = "/layers/" in path and path.endswith("/kernel")
        out[path] = (
            optax.contrib.MuonDimensionNumbers(
                tuple(range(1, split)), tuple(range(split, value.ndim))
            )
            if kernel
            else None
        )
    return out


def _times(factors: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiply each leaf by its factor; skipped where every factor is one."""

    def update(updates, params):
        del params
        return {
            path: u
            if np.all(factors[path] == 1)
            else u * jnp.asarray(factors[path], u.dtype)
            for path, u in updates.items()
        }

    return optax.stateless(update)


def global_norm(tree: Any) -> jax.Array:
    """Scalar float32: the l2 norm over all leaves."""
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
