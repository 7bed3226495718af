"""Where metrics go besides metrics.jsonl: TensorBoard, and W&B behind a flag."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Writer = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def open_writers(
    directory: Path, name: str, tensorboard: bool, wandb: bool
) -> Iterator[Writer]:
    """A function (step, numbers) -> None that feeds every sink asked for.

    Raises ImportError: W&B is asked for and not installed.
    """
    with contextlib.ExitStack() as stack:
        sinks: list[Writer] = []
        if tensorboard:
            sinks.append(stack.enter_context(_tensorboard(directory / "tensorboard")))
        if wandb:
            sinks.append(stack.enter_context(_wandb(directory, name)))

        def write(step, numbers):
            for sink in sinks:
                sink(step, numbers)

        yield write


@contextlib.contextmanager
def _tensorboard(directory):
    from tensorboardX import SummaryWriter

    with contextlib.closing(SummaryWriter(str(directory))) as writer:

        def write(step, numbers):
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)

        yield write


@contextlib.contextmanager
def _wandb(directory, name):
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "train.wandb=True needs the wandb package: pip install wandb, or set it "
            "to False."
        ) from error
    run = wandb.init(
        project="alanything_jax", name=name, dir=str(directory), resume="allow"
    )
    try:
        yield lambda step, numbers: run.log(dict(numbers), step=step)
    finally:
        run.finish()
