"""Training a codec: media in, a table of codes and two nets out, and a page to look at.

VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937), equation 3, with its appendix A.1:
z = latents(x), e = nearest rows of the table to z,

    loss = |x - restored(z + stop(e - z))|^2 + commitment * |z - stop(e)|^2

and the table's rows follow, as moving means, the latents that chose them. A row that is
hardly chosen any more starts again at a latent that the table fits badly.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from alanything_jax.checkpoint import manager as checkpoints
from alanything_jax.data import groups, media
from alanything_jax.data.quarantine import Quarantine
from alanything_jax.models import codecs
from alanything_jax.models.codecs import vq
from alanything_jax.pipelines import codec_page
from alanything_jax.schema import Part, parts_of
from alanything_jax.sharding import distributed
from alanything_jax.training import optimizer as optimizers
from alanything_jax.training import run_dir


@dataclasses.dataclass(frozen=True)
class CodecRecipe:
    """A whole recipe of a codec.

    Attributes:
      name: names the run directory, `runs/<name>`.
      codec: a trainable one of `models.codecs`: VQ or AudioVQ.
      data: a folder of media files (those of the codec's kind are read, whatever folder
        below they lie in), or whatever `data.groups.examples` reads, such as
        `playground:demonstrations/2000`; all media of the kind in prompts and responses.
        Equal media count once.
      batch_size: media of a step. warmup_steps: of the learning rate; then cosine to 0.
      commitment: weight of the latents' distance to their rows.
      decay: of the moving means that rows follow, per step.
      restart_below: share of an even use below which a row starts again.
      heldout: media kept for the figures at the end and the page, by seed.
      shown: media on the page.
      max_bad_share: of unreadable media, above which the run stops.
    """

    name: str
    codec: Any
    data: str
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    commitment: float = 0.25
    decay: float = 0.95
    restart_below: float = 0.02
    heldout: int = 64
    shown: int = 12
    checkpoint_every: int = 200
    keep: int = 2
    max_bad_share: float = 0.05
    seed: int = 0

    def tiny(self) -> CodecRecipe:
        """The same recipe made small: narrow nets, 60 steps, the playground's media."""
        small = dataclasses.replace(self.codec, channels=16, depth=1, size=32)
        few = {"steps": 60, "batch_size": 8, "heldout": 8, "shown": 4}
        few |= {"codec": small, "data": "playground:demonstrations/200"}
        return dataclasses.replace(self, **few, checkpoint_every=20)


@flax.struct.dataclass
class State:
    """What a checkpoint holds.

    Attributes:
      nets: path -> array, trained by gradient. table: [levels, size, D].
      counts: [levels, size], how often a row was chosen in a step: moving mean.
      sums: [levels, size, D], of the latents that chose it, likewise.
      optimizer: Optax's state.
    """

    nets: dict[str, jax.Array]
    table: jax.Array
    counts: jax.Array
    sums: jax.Array
    optimizer: Any

    @property
    def params(self) -> dict[str, jax.Array]:
        """As the codec takes them."""
        return {**self.nets, vq.TABLE: self.table}


def load_media(
    recipe: CodecRecipe, quarantine_path: Path, say: Callable[[str], None] = print
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Media to train on and held-out ones, each once, in the codec's size.

    Raises:
      TooManyBad: more unreadable ones than `max_bad_share`.
      ValueError: no more than are to be held out.
    """
    kind, found = recipe.codec.kind, {}
    quarantine = Quarantine(quarantine_path, recipe.max_bad_share)
    for row, item in _parts(recipe.data, kind):
        quarantine.seen += 1
        try:
            if isinstance(item, Exception):
                raise item
            array, meta = media.load(item)
            about = {"rate": meta["rate"]} if "rate" in meta else {}
            array = recipe.codec.fit(array, **about)
            recipe.codec.patches(recipe.codec.crop(array, np.random.default_rng(0)))
        except ValueError as error:
            quarantine.add(recipe.data, row, error)
            continue
        shape = repr(array.shape).encode()
        found.setdefault(hashlib.sha256(shape + array.tobytes()).digest(), array)
    quarantine.close()
    say(
        f"data {recipe.data}: {quarantine.seen} media, {len(found)} different ones kept "
        f"({quarantine.summary()})"
    )
    if len(found) <= recipe.heldout:
        raise ValueError(
            f"{recipe.data} holds {len(found)} different media of kind {kind}, of which "
            f"{recipe.heldout} are to be held out: nothing remains to train on. Give more "
            f"data, or lower heldout; see {quarantine_path}."
        )
    return groups.split(list(found.values()), recipe.heldout, recipe.seed)


def _parts(path: str, kind: str) -> Iterator[tuple[int, Part | Exception]]:
    """(row, medium) of a folder of files, or of the records of any data source."""
    place = Path(path)
    if place.is_dir():
        endings = media.SUFFIXES[kind]
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in endings)
        if files:
            yield from ((n, Part(kind, uri=str(file))) for n, file in enumerate(files))
            return
    for row, example in groups.examples(path):
        if isinstance(example, Exception):
            yield row, example
            continue
        said = [m for response in example.responses for m in response.messages]
        found = parts_of([*example.prompt, *said])
        yield from ((row, part) for part in found if part.kind == kind)


def batch(
    recipe: CodecRecipe, items: Sequence[np.ndarray], step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches [B, n, P] and mask [B, n] of a step: a function of seed and step alone."""
    rng = np.random.default_rng([recipe.seed, step])
    few = len(items) < recipe.batch_size
    chosen = rng.choice(len(items), recipe.batch_size, replace=few)
    return laid_out(recipe.codec, [recipe.codec.crop(items[n], rng) for n in chosen])


def laid_out(codec: Any, items: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Media -> patches [B, n, P] and mask [B, n]."""
    patches, masks = zip(*map(codec.patches, items), strict=True)
    return np.stack(patches), np.stack(masks)


def loss(
    codec: Any,
    params: Mapping[str, jax.Array],
    patches: jax.Array,
    mask: jax.Array,
    commitment: float = 0.25,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The equation above, as means over the values of real patches.

    Returns the loss, and `reconstruction`, `commitment`, `codes` [B, n, levels],
    `given` [B, n, levels, D].
    """
    latents = codec.latents(params, patches, mask)
    codes, nearest, given = vq.quantize(params[vq.TABLE], latents)
    passed = latents + jax.lax.stop_gradient(nearest - latents)
    restored = codec.restored(params, passed, mask)
    parts = {
        "reconstruction": _mean(jnp.square(patches - restored), mask),
        "commitment": _mean(jnp.square(latents - nearest), mask),
    }
    total = parts["reconstruction"] + commitment * parts["commitment"]
    return total, parts | {"codes": codes, "given": given}


def _mean(values, mask):
    """Of [B, n, k] where the mask [B, n] is True."""
    total = jnp.where(mask[..., None], values, 0.0).sum()
    return total / jnp.maximum(mask.sum() * values.shape[-1], 1)


def _hits(codes, mask, size):
    """[B, n, levels, size]: 1 where a real patch chose a row."""
    hits = jax.nn.one_hot(codes, size, dtype=jnp.float32)
    return jnp.where(mask[..., None, None], hits, 0.0)


def follow(
    state: State,
    codes: jax.Array,
    given: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    decay: float,
    restart_below: float,
) -> tuple[State, jax.Array]:
    """Move each row to the mean of the latents that chose it; restart dead rows.

    A restarted row takes a latent of the batch, drawn by how badly it was fitted.

    Args:
      codes: [B, n, levels]. given: [B, n, levels, D]. mask: [B, n].

    Returns the state, and how many rows started again.
    """
    levels, size = state.counts.shape
    hits = _hits(codes, mask, size)
    counts = decay * state.counts + (1 - decay) * hits.sum((0, 1))
    sums = jnp.einsum("bnlk,bnld->lkd", hits, given)
    sums = decay * state.sums + (1 - decay) * sums
    chosen = jnp.stack([state.table[n][codes[..., n]] for n in range(levels)], -2)
    gaps = jnp.square(given - chosen).sum(-1)
    logits = jnp.where(mask[..., None], jnp.log(gaps + 1e-12), -jnp.inf)
    logits = logits.reshape(-1, levels).T[:, None]
    drawn = jax.random.categorical(key, logits, shape=(levels, size))
    flat = given.reshape(-1, levels, given.shape[-1])
    fresh = jnp.take_along_axis(flat.swapaxes(0, 1), drawn[..., None], axis=1)
    even = mask.sum() / size
    dead = counts < restart_below * even
    counts = jnp.where(dead, even, counts)
    sums = jnp.where(dead[..., None], fresh * even, sums)
    table = sums / jnp.maximum(counts, 1e-9)[..., None]
    return state.replace(table=table, counts=counts, sums=sums), dead.sum()


def _transformation(recipe):
    rate, warmup = recipe.learning_rate, recipe.warmup_steps
    options = optimizers.Optimizer(learning_rate=rate, warmup_steps=warmup, b2=0.99)
    shapes = {p: s.shape for p, s in recipe.codec.specs().items() if p != vq.TABLE}
    rates = optimizers.multipliers(options, shapes)
    return optimizers.make(options, recipe.steps, rates)


def initial_state(recipe: CodecRecipe) -> State:
    """Random nets and rows; the first step places the rows."""
    nets = vq.initial(recipe.codec, jax.random.key(recipe.seed))
    table = nets.pop(vq.TABLE)
    zeros = jnp.zeros_like(table)
    chosen = _transformation(recipe).init(nets)
    # Jitted, so that every leaf is an array of its own with a device.
    return jax.jit(lambda s: s)(State(nets, table, zeros[..., 0], zeros, chosen))


@functools.partial(jax.jit, static_argnums=0)
def train_step(
    recipe: CodecRecipe,
    state: State,
    patches: jax.Array,
    mask: jax.Array,
    step: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """One update of nets and table by patches [B, n, P] with mask [B, n].

    Args:
      step: which, for the key of restarts.

    Returns the new state; scalars `loss`, `reconstruction`, `commitment`, `grad_norm`,
    `perplexity`, `used` (share of the codes in this batch), `restarted`.
    """

    def of_nets(nets):
        params = {**nets, vq.TABLE: state.table}
        return loss(recipe.codec, params, patches, mask, recipe.commitment)

    (total, parts), grads = jax.value_and_grad(of_nets, has_aux=True)(state.nets)
    updates, chosen = _transformation(recipe).update(grads, state.optimizer, state.nets)
    codes, given = parts.pop("codes"), parts.pop("given")
    nets = optax.apply_updates(state.nets, updates)
    state = state.replace(nets=nets, optimizer=chosen)
    key = jax.random.fold_in(jax.random.key(recipe.seed), step)
    how = recipe.decay, recipe.restart_below
    state, restarted = follow(state, codes, given, mask, key, *how)
    numbers = {"loss": total, **parts, "grad_norm": optimizers.global_norm(grads)}
    numbers |= codec_page.usage(_hits(codes, mask, recipe.codec.size).sum((0, 1)))
    return state, numbers | {"restarted": restarted}


def train_codec(
    recipe: CodecRecipe,
    directory: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> run_dir.RunDir:
    """Run a recipe to its end, or go on where its run directory stopped.

    Returns the run directory, with `codec.json`, `codec.safetensors`,
    `reconstructions.html`, metrics, checkpoints and quarantine in it.

    Raises:
      ValueError: the directory belongs to another config, or the data does not fit.
      FloatingPointError: a loss or gradient is not finite.
    """
    if distributed.several():
        raise ValueError(
            "a codec is small and trains on one host: run this on one alone, with "
            "JAX_PLATFORMS=cpu or without the options of several hosts."
        )
    run = run_dir.open_run(directory or Path("runs") / recipe.name, recipe)
    items, heldout = load_media(recipe, run.path / "quarantine.jsonl", say)
    state, total = initial_state(recipe), recipe.steps
    news = TextColumn("{task.fields[news]}")
    progress = Progress(TextColumn("codec"), BarColumn(), MofNCompleteColumn(), news)
    with checkpoints.manager(run.checkpoints, recipe.keep) as saved, progress:
        start = checkpoints.latest_step(saved) or 0
        if start:
            state = checkpoints.restore(saved, state)
            say(f"resuming {run.path} after step {start} of {total}")
        run_dir.cut_after(run.metrics, start if start else -1)
        task = progress.add_task("train", total=total, completed=start, news="")
        for step in range(start, total):
            patches, mask = batch(recipe, items, step)
            state, numbers = train_step(recipe, state, patches, mask, jnp.int32(step))
            numbers = {n: float(v) for n, v in jax.device_get(numbers).items()}
            run_dir.check_finite(numbers, step + 1, "Lower learning_rate")
            if step + 1 == total and heldout:
                figures = codec_page.figures(recipe.codec, state.params, heldout)
                numbers |= {f"heldout_{n}": v for n, v in figures.items()}
            run_dir.append(run.metrics, {"step": step + 1} | numbers)
            news = f"loss {numbers['loss']:.4f}"
            progress.update(task, completed=step + 1, news=news)
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == total:
                checkpoints.save(saved, step + 1, state)
        checkpoints.wait(saved, total)
    params = jax.device_get(state.params)
    codecs.save(run.path, recipe.codec, params)
    page, trained = run.path / "reconstructions.html", (recipe.codec, params)
    said = codec_page.write(page, recipe.name, trained, heldout, recipe.shown)
    say(f"{total} steps done; held-out: {said}")
    return run
