"""Codec training: it learns, resumes to the bit, revives dead codes, shows its work."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import alanything_jax
from alanything_jax import experiment as recipes
from alanything_jax.cli import recipe as command
from alanything_jax.cli import train as verb
from alanything_jax.data import media
from alanything_jax.data.quarantine import TooManyBad
from alanything_jax.models import codecs
from alanything_jax.models.codecs import vq
from alanything_jax.pipelines import codec as training
from alanything_jax.pipelines import codec_page
from alanything_jax.playground import lexicon

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "codecs").glob("*.py"))


def tiny(name="image", **changes):
    (path,) = (p for p in CONFIGS if p.stem == name)
    return dataclasses.replace(recipes.load(path).tiny(), **changes)


def quiet(line):
    del line


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.fixture(scope="module", params=CONFIGS, ids=[p.stem for p in CONFIGS])
def run(request, tmp_path_factory):
    """Each recipe, trained tiny."""
    recipe = tiny(request.param.stem)
    folder = tmp_path_factory.mktemp(request.param.stem)
    return recipe, alanything_jax.train(recipe, folder, quiet)


def test_the_loss_falls_and_the_last_line_has_the_figures(run):
    recipe, trained = run
    rows = lines(trained)
    assert [row["step"] for row in rows] == list(range(1, recipe.steps + 1))
    first, last = (np.mean([r["loss"] for r in part]) for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first
    name = "snr" if recipe.codec.kind == "audio" else "psnr"
    # Sixty steps of a narrow net: better than nothing is all they must be.
    assert rows[-1][f"heldout_{name}_db"] > (-1 if name == "snr" else 6)
    assert 1 <= rows[-1]["heldout_perplexity"] <= recipe.codec.size
    assert 0 < rows[-1]["heldout_used"] <= 1


def test_what_is_written_is_the_trained_codec(run):
    recipe, trained = run
    codec, params = codecs.load(trained.path)
    assert codec == recipe.codec
    _, heldout = training.load_media(recipe, trained.path / "again.jsonl", quiet)
    figures = codec_page.figures(codec, params, heldout)
    stated = lines(trained)[-1]
    assert {n: stated[f"heldout_{n}"] for n in figures} == figures
    # The recipe on disk is the one that was run.
    said = json.loads(trained.config.read_text())
    assert recipes.from_json(said) == recipe


def test_the_page_is_self_contained_and_shows_pairs(run):
    recipe, trained = run
    page = (trained.path / "reconstructions.html").read_text()
    assert page.count("<section>") == recipe.shown
    assert "dB" in page and "perplexity" in page and "codes used" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * recipe.shown
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in page
    raw = base64.b64decode(sources[0].partition(",")[2])
    if recipe.codec.kind == "audio":
        assert raw[:4] == b"RIFF"
    else:
        with Image.open(io.BytesIO(raw)) as picture:
            assert getattr(picture, "n_frames", 1) == recipe.codec.frames


class Killed(Exception):
    """Stands for a kill."""


def test_resuming_gives_the_same_bytes(tmp_path, monkeypatch):
    recipe = tiny(steps=9, checkpoint_every=4, data="playground:demonstrations/60")
    whole = alanything_jax.train(recipe, tmp_path / "whole", quiet)

    real = training.train_step

    def killed(recipe, state, patches, mask, step):
        if int(step) == 6:
            raise Killed
        return real(recipe, state, patches, mask, step)

    monkeypatch.setattr(training, "train_step", killed)
    with pytest.raises(Killed):
        alanything_jax.train(recipe, tmp_path / "part", quiet)
    assert len((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()) == 6
    monkeypatch.undo()
    said = []
    part = alanything_jax.train(recipe, tmp_path / "part", said.append)
    assert any("after step 4 of 9" in line for line in said)
    for name in ("metrics.jsonl", "codec.safetensors", "reconstructions.html"):
        assert (part.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    # Once more: nothing is left to do, and nothing changes.
    before = (part.path / "codec.safetensors").read_bytes()
    alanything_jax.train(recipe, tmp_path / "part", quiet)
    assert (part.path / "codec.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="batch_size"):
        alanything_jax.train(
            dataclasses.replace(recipe, batch_size=4), tmp_path / "part", quiet
        )


def test_a_batch_is_a_function_of_seed_and_step():
    recipe = tiny("audio", batch_size=4)
    rng = np.random.default_rng(0)
    items = [rng.normal(size=n).astype(np.float32) for n in (900, 19200, 40000, 70000)]
    patches, mask = training.batch(recipe, items, 5)
    again, _ = training.batch(recipe, items, 5)
    other, _ = training.batch(recipe, items, 6)
    assert patches.shape == (4, 48, 400) and mask.shape == (4, 48)
    assert sorted(mask.sum(1).tolist()) == [3, 48, 48, 48]
    assert np.array_equal(patches, again) and not np.array_equal(patches, other)


def test_what_is_masked_changes_no_number():
    recipe = tiny("audio")
    params = vq.initial(recipe.codec, jax.random.key(0))
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2, 48, 400)).astype(np.float32)
    mask = np.arange(48) < np.array([[10], [48]])
    noisy = np.where(mask[..., None], patches, 100.0).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def of(p, x):
        return training.loss(recipe.codec, p, x, mask)[0]

    (one, grads), (other, more) = of(params, patches), of(params, noisy)
    assert one == other
    jax.tree.map(np.testing.assert_array_equal, grads, more)
    empty, _ = training.loss(recipe.codec, params, patches, np.zeros_like(mask))
    assert empty == 0


def test_the_table_gets_no_gradient_and_the_encoder_does():
    recipe = tiny()
    params = vq.initial(recipe.codec, jax.random.key(0))
    items = [np.full((64, 64, 3), n * 30, np.uint8) for n in range(8)]
    patches, mask = training.laid_out(recipe.codec, items)

    @jax.jit
    @jax.grad
    def of(p):
        return training.loss(recipe.codec, p, patches, mask)[0]

    grads = of(params)
    assert not np.any(grads[vq.TABLE])
    assert np.any(grads["encoder/in/kernel"]) and np.any(grads["decoder/out/kernel"])


def test_rows_follow_their_latents_and_dead_ones_restart_at_the_worst_fitted():
    recipe = tiny()
    state = training.initial_state(recipe)
    table = jnp.zeros((1, 4, 2)).at[0, 1:].set(100.0).at[0, 0].set(1.0)
    state = state.replace(table=table, counts=jnp.full((1, 4), 3.0), sums=3.0 * table)
    # Three latents lie upon row 0, one far from every row.
    given = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0]])[None, :, None]
    codes = jnp.zeros((1, 4, 1), jnp.int32)
    mask = jnp.array([[True] * 4])
    key = jax.random.key(0)
    # Far from dead: row 0 moves towards the mean, the others stay where they are.
    moved, restarted = training.follow(state, codes, given, mask, key, 0.5, 0.1)
    assert restarted == 0
    np.testing.assert_allclose(moved.counts, [[3.5, 1.5, 1.5, 1.5]])
    np.testing.assert_allclose(moved.table[0, 0], [(1.5 + 6.0) / 3.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(moved.table[0, 1:], 100.0)
    # A high bar: the unused rows start again, all at the latent that fits no row.
    moved, restarted = training.follow(state, codes, given, mask, key, 0.5, 2.0)
    assert restarted == 3
    np.testing.assert_allclose(moved.table[0, 1:], 9.0)
    np.testing.assert_allclose(moved.counts, [[3.5, 1.0, 1.0, 1.0]])
    # What the mask hides is neither counted nor drawn.
    hidden = jnp.array([[True, True, True, False]])
    moved, _ = training.follow(state, codes, given, hidden, key, 0.5, 2.5)
    np.testing.assert_allclose(moved.table[0], 1.0)


def test_dead_codes_come_back_in_training():
    """From a table far away from every latent, most codes are used soon."""
    recipe = tiny(steps=40, decay=0.5, restart_below=0.2)
    rng = np.random.default_rng(0)
    items = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(8)]
    state = training.initial_state(recipe)
    far = jnp.full_like(state.table, 1e3).at[:, 0].set(0.0)
    state = state.replace(table=far, counts=jnp.ones_like(state.counts), sums=far)
    used, restarted = [], 0
    for step in range(40):
        patches, mask = training.batch(recipe, items, step)
        state, numbers = training.train_step(
            recipe, state, patches, mask, jnp.int32(step)
        )
        used.append(float(numbers["used"]))
        restarted += int(numbers["restarted"])
    assert used[0] == 1 / recipe.codec.size and restarted >= recipe.codec.size - 1
    assert used[-1] > 0.5, used


def test_usage_by_hand():
    counts = jnp.array([[2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = codec_page.usage(counts)
    assert found["perplexity"] == pytest.approx(3.0, rel=1e-6)
    assert found["used"] == pytest.approx(0.75)


def test_decibels_by_hand():
    white, grey = np.full((2, 2, 3), 255, np.uint8), np.full((2, 2, 3), 230, np.uint8)
    expected = 20 * np.log10(255 / 25)
    assert codec_page.decibels("image", [(white, grey)]) == pytest.approx(expected)
    assert codec_page.decibels("image", [(white, white)]) == pytest.approx(120)
    tone = np.array([1.0, -1.0], np.float32)
    assert codec_page.decibels("audio", [(tone, 0.9 * tone)]) == pytest.approx(20.0)


def pictures(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        codes = rng.integers(0, lexicon.PICTURE.size, lexicon.PICTURE.length)
        raw = media.dump("image", lexicon.PICTURE.decode({}, codes))
        (folder / f"{n}.png").write_bytes(raw)


def test_a_folder_of_files_bad_ones_set_aside_and_equal_ones_once(tmp_path):
    pictures(tmp_path / "data" / "below", 12)
    copy = (tmp_path / "data" / "below" / "3.png").read_bytes()
    (tmp_path / "data" / "copy.png").write_bytes(copy)
    (tmp_path / "data" / "bad.png").write_bytes(copy[:60])
    (tmp_path / "data" / "notes.txt").write_text("no picture")
    recipe = tiny(data=str(tmp_path / "data"), heldout=4, max_bad_share=0.1)
    said = []
    listed = tmp_path / "quarantine.jsonl"
    items, heldout = training.load_media(recipe, listed, said.append)
    assert len(items) == 8 and len(heldout) == 4
    assert "14 media, 12 different ones kept (1 bad)" in said[0]
    assert "cannot be decoded" in listed.read_text()
    with pytest.raises(TooManyBad, match="1 of 14"):
        training.load_media(
            dataclasses.replace(recipe, max_bad_share=0.0), listed, quiet
        )
    with pytest.raises(ValueError, match="nothing remains to train on"):
        training.load_media(dataclasses.replace(recipe, heldout=12), listed, quiet)


def test_audio_of_another_rate_is_refused(tmp_path):
    tone = np.sin(np.arange(4000) / 9).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(media.dump("audio", tone, rate=16000))
    recipe = tiny("audio", data=str(tmp_path), heldout=0)
    with pytest.raises(TooManyBad, match="16000 Hz.*8000 Hz"):
        training.load_media(recipe, tmp_path / "q.jsonl", quiet)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = tiny(steps=5, learning_rate=float("inf"))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        alanything_jax.train(recipe, tmp_path / "run", quiet)


def test_the_command(tmp_path, capsys):
    (path,) = (str(p) for p in CONFIGS if p.stem == "video")
    argv = [path, "--tiny", "--run-dir", str(tmp_path / "run"), "--steps", "2"]
    argv += ["--codec.temporal", "--data", "playground:demonstrations/120"]
    call = command.parse("train", argv)
    assert call.experiment.codec.temporal and call.experiment.steps == 2
    assert verb.main(argv) == 0
    said = capsys.readouterr().out
    assert "reconstructions.html" in said and (tmp_path / "run" / "codec.json").exists()
    with pytest.raises(SystemExit):
        command.parse("train", [path, "--codec.sise", "3"])
    assert "--codec.size" in capsys.readouterr().err
