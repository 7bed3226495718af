"""A rollout on disk: one file, written before it is trained on.

A run that goes on, a judge that costs money and a replay on other devices read the file
instead of sampling again.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np

from alanything_jax.data.files import write_aside


@dataclasses.dataclass(frozen=True)
class Rolled:
    """One rollout of N prompts, K responses each.

    Attributes:
      number: of the rollout, from 0. age: optimizer steps by which its policy was old.
      cursor: prompts of the order that were used up to its end.
      places: [N] which prompts. tokens, logps: N lists of K arrays, as sampled.
      scored: which tokens are the policy's own, not an environment's.
      finished: [N, K] bool. rewards, costs: [N, K] float32, NaN = none.
      facts: numbers to report. first_error: what the first score that failed said.
      multiplier: of costs, see `algorithms/ppo_lagrangian.py`.
      recorded: role -> N lists of K arrays, of algorithms.base.RECORDED.
    """

    number: int
    cursor: int
    places: np.ndarray
    tokens: list[list[np.ndarray]]
    logps: list[list[np.ndarray]]
    scored: list[list[np.ndarray]]
    finished: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    facts: dict[str, float]
    first_error: str = ""
    multiplier: float = 1.0
    age: int = 0
    recorded: dict[str, list[list[np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )


def save(rolled: Rolled, path: Path) -> None:
    """Write a rollout, whole or not at all."""
    sizes = [[len(t) for t in row] for row in rolled.tokens]
    arrays = {
        "places": rolled.places,
        "sizes": np.array(sizes, np.int32),
        "tokens": _flat(rolled.tokens).astype(np.int32),
        "logps": _flat(rolled.logps).astype(np.float32),
        "scored": _flat(rolled.scored),
        "finished": rolled.finished,
        "rewards": rolled.rewards,
        "costs": rolled.costs,
        "state": np.array([rolled.number, rolled.cursor, rolled.age], np.int64),
        "multiplier": np.float64(rolled.multiplier),
        "first_error": np.array(rolled.first_error),
        "fact_names": np.array(list(rolled.facts)),
        "fact_values": np.array(list(rolled.facts.values()), np.float64),
    }
    arrays |= {
        f"recorded/{role}": _flat(values) for role, values in rolled.recorded.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, buffer.getvalue())


def load(path: Path) -> Rolled:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        sizes = file["sizes"]
        number, cursor, age = map(int, file["state"])
        facts = zip(
            file["fact_names"].tolist(), file["fact_values"].tolist(), strict=True
        )
        roles = [n for n in file.files if n.startswith("recorded/")]
        return Rolled(
            number=number,
            cursor=cursor,
            age=age,
            places=file["places"],
            tokens=_cut(file["tokens"], sizes),
            logps=_cut(file["logps"], sizes),
            scored=_cut(file["scored"], sizes),
            finished=file["finished"],
            rewards=file["rewards"],
            costs=file["costs"],
            multiplier=float(file["multiplier"]),
            facts=dict(facts),
            first_error=str(file["first_error"]),
            recorded={n.split("/", 1)[1]: _cut(file[n], sizes) for n in roles},
        )


def _flat(values):
    return np.concatenate([array for row in values for array in row])


def _cut(flat, sizes):
    pieces = iter(np.split(flat, np.cumsum(sizes.reshape(-1))[:-1]))
    return [[next(pieces) for _ in row] for row in sizes]
