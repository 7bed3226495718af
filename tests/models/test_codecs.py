"""Every codec keeps the contract; the trained ones learn, and travel with a model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alanything_jax import hub
from alanything_jax.data import media
from alanything_jax.hub.source import playground_bundle
from alanything_jax.models import codecs
from alanything_jax.models.codecs import vq
from alanything_jax.models.codecs.audio_vq import AudioVQ
from alanything_jax.models.codecs.notes import Notes
from alanything_jax.models.codecs.palette import Palette
from alanything_jax.models.codecs.vq import VQ
from alanything_jax.models.families import anything
from alanything_jax.models.grammar import Block
from alanything_jax.pipelines import codec as training
from alanything_jax.pipelines import codec_page
from alanything_jax.playground import clips, lexicon, pictures, tunes
from alanything_jax.schema import Part

SMALL = {"size": 32, "channels": 16, "depth": 1, "latent": 8}
IMAGE = VQ("image", height=32, width=32, patch=8, **SMALL)
VIDEO = VQ("video", height=24, width=24, frames=3, patch=8, **SMALL)
FOLDED = dataclasses.replace(VIDEO, temporal=True)
AUDIO = AudioVQ(hop=400, frames=48, codebooks=2, **SMALL)
EXACT = {"palette": lexicon.PICTURE, "clip": lexicon.CLIP, "notes": lexicon.TUNE}
TRAINED = {"image": IMAGE, "video": VIDEO, "folded": FOLDED, "audio": AUDIO}
ALL = {**EXACT, **TRAINED}
WORLDS = {"image": pictures, "audio": tunes, "video": clips}
EXACT_OF = {codec.kind: codec for codec in EXACT.values()}


def playground(kind, count=1, seed=0):
    """Media of the playground."""
    world, rng = WORLDS[kind], np.random.default_rng(seed)
    drawn = [world.realise(world.sample(rng), rng) for _ in range(count)]
    return [EXACT_OF[kind].decode({}, codes) for codes in drawn]


def params_of(codec, seed=0):
    """Random arrays; none for an exact codec."""
    if codec in EXACT.values():
        return {}
    return jax.device_get(vq.initial(codec, jax.random.key(seed)))


def test_every_kind_of_codec_is_examined():
    # Those that read Hugging Face's directories have tests of their own.
    elsewhere = {module.__name__ for module in codecs.HF.values()}
    ours = {k for k in codecs.CODECS.values() if k.__module__ not in elsewhere}
    assert {type(codec) for codec in ALL.values()} == ours


@pytest.mark.parametrize("name", ALL)
def test_json_gives_the_codec_back(name):
    text = json.dumps(codecs.to_json(ALL[name]))
    assert codecs.from_json(json.loads(text)) == ALL[name]


def test_json_of_an_unknown_codec_names_those_there_are():
    with pytest.raises(ValueError, match="audio_vq.*vq"):
        codecs.from_json({"name": "zip"})


@pytest.mark.parametrize("name", ALL)
def test_codes_are_in_range_and_whole_frames_and_decode_to_media(name):
    codec, params = ALL[name], params_of(ALL[name])
    (item,) = playground(codec.kind)
    codes = codec.encode(params, item)
    assert codes.dtype == np.int32 and codes.ndim == 1
    assert codes.min() >= 0 and codes.max() < codec.size
    assert len(codes) % codec.frame == 0 and 0 < len(codes) <= codec.length
    assert codec.stop or len(codes) == codec.length
    out = codec.decode(params, codes)
    assert out.dtype == item.dtype and out.ndim == item.ndim
    if codec.kind == "audio":
        assert len(out) == len(item) and np.abs(out).max() <= 1
    # What a grammar is made of.
    Block(codec.kind, 0, 1, codec.size, codec.length, codec.stop, codec.frame)
    assert np.array_equal(codec.encode(params, item), codes)


@pytest.mark.parametrize("name", EXACT)
def test_exact_codecs_give_the_medium_back(name):
    codec = EXACT[name]
    for item in playground(codec.kind, 20):
        assert np.array_equal(codec.decode({}, codec.encode({}, item)), item)


@pytest.mark.parametrize("name", ALL)
def test_any_code_that_the_grammar_allows_decodes(name):
    codec, params = ALL[name], params_of(ALL[name])
    rng = np.random.default_rng(1)
    for count in {codec.frame, codec.length} if codec.stop else {codec.length}:
        out = codec.decode(params, rng.integers(0, codec.size, count))
        assert np.all(np.isfinite(out)) and len(out)


def test_sizes():
    assert IMAGE.length == 16 and VIDEO.length == 27 and FOLDED.length == 18
    assert AUDIO.length == 96 and AUDIO.frame == 2
    assert IMAGE.decode(params_of(IMAGE), np.zeros(16, int)).shape == (32, 32, 3)
    assert FOLDED.decode(params_of(FOLDED), np.zeros(18, int)).shape == (3, 24, 24, 3)
    assert AUDIO.decode(params_of(AUDIO), np.zeros(6, int)).shape == (1200,)


def test_patches_are_cut_and_put_together_exactly():
    rng = np.random.default_rng(0)
    for codec in (IMAGE, VIDEO, FOLDED):
        shape = (codec.frames, codec.height, codec.width, 3)
        item = rng.integers(0, 256, shape).astype(np.uint8)
        item = item if codec.kind == "video" else item[0]
        patches, mask = codec.patches(item)
        assert len(patches) == codec.length and mask.all()
        assert np.abs(patches).max() <= 1
        assert np.array_equal(codec.assembled(patches, mask), item)
    # Row by row: the second patch of a picture lies right of the first.
    item = np.zeros((32, 32, 3), np.uint8)
    item[:8, 8:16] = 255
    assert np.flatnonzero(IMAGE.patches(item)[0].max(1) > 0).tolist() == [1]


def test_a_picture_of_any_size_is_resized():
    rng = np.random.default_rng(0)
    item = rng.integers(0, 256, (70, 45, 3)).astype(np.uint8)
    assert IMAGE.fit(item).shape == (32, 32, 3)
    assert VIDEO.fit(item[None].repeat(3, 0)).shape == (3, 24, 24, 3)
    assert len(IMAGE.encode(params_of(IMAGE), item)) == IMAGE.length
    flat = np.full((70, 45, 3), 99, np.uint8)
    assert np.all(IMAGE.fit(flat) == 99)


def test_audio_is_padded_to_whole_frames_and_padding_changes_nothing():
    params = params_of(AUDIO)
    (item,) = playground("audio")
    codes = AUDIO.encode(params, item[:2000])
    assert len(codes) == 5 * 2
    assert len(AUDIO.encode(params, item[:2001])) == 6 * 2
    longer = dataclasses.replace(AUDIO, frames=9)
    assert np.array_equal(longer.encode(params, item[:2000]), codes)
    np.testing.assert_allclose(
        longer.decode(params, codes), AUDIO.decode(params, codes), atol=1e-6
    )


def test_quantize_takes_the_nearest_row_level_by_level():
    table = jnp.array([[[0.0, 0.0], [4.0, 4.0]], [[1.0, 0.0], [0.0, -1.0]]])
    latents = jnp.array([[4.9, 4.1], [0.1, -0.8]])
    codes, nearest, given = vq.quantize(table, latents)
    assert codes.tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(nearest, [[5.0, 4.0], [0.0, -1.0]])
    np.testing.assert_allclose(given[:, 1], [[0.9, 0.1], [0.1, -0.8]], rtol=1e-5)
    np.testing.assert_allclose(vq.looked_up(table, codes), nearest)


PIXELS = np.zeros((24, 24, 3), np.uint8)
WRONG = [
    (IMAGE, PIXELS[..., 0], "uint8"),
    (IMAGE, PIXELS.astype(np.float32), "uint8"),
    (IMAGE, PIXELS[None], r"\[height, width, 3\]"),
    (IMAGE, PIXELS[:0], "uint8"),
    (VIDEO, PIXELS, r"\[frames, height, width, 3\]"),
    (VIDEO, PIXELS[None].repeat(4, 0), "4 frames, the codec takes 3"),
    (AUDIO, np.zeros(0, np.float32), "samples"),
    (AUDIO, np.zeros((9, 2), np.float32), "samples"),
    (AUDIO, np.zeros(9, np.int16), "float32"),
    (AUDIO, np.zeros(48 * 400 + 1, np.float32), "the codec takes 2.40 s"),
    (lexicon.PICTURE, PIXELS, "the codec's"),
    (lexicon.TUNE, np.zeros(7, np.float32), "beats"),
]


@pytest.mark.parametrize("codec, item, says", WRONG)
def test_media_it_cannot_represent(codec, item, says):
    with pytest.raises(ValueError, match=says):
        codec.encode(params_of(codec), item)


def test_wrong_codes_arrays_rates_and_settings():
    with pytest.raises(ValueError, match="the codec has 16"):
        IMAGE.decode(params_of(IMAGE), np.zeros(15, int))
    with pytest.raises(ValueError, match=r"0 \.\. 31"):
        IMAGE.decode(params_of(IMAGE), np.full(16, 32))
    for count in (0, 3, 98):
        with pytest.raises(ValueError, match="whole frames"):
            AUDIO.decode(params_of(AUDIO), np.zeros(count, int))
    with pytest.raises(ValueError, match="other arrays than its own"):
        IMAGE.encode({}, PIXELS)
    with pytest.raises(ValueError, match="decoder/out"):
        FOLDED.decode(params_of(VIDEO), np.zeros(18, int))
    tone = np.zeros(800, np.float32)
    with pytest.raises(ValueError, match="44100 Hz"):
        AUDIO.encode(params_of(AUDIO), tone, rate=44100)
    assert len(AUDIO.encode(params_of(AUDIO), tone, rate=8000)) == 4
    with pytest.raises(ValueError, match="multiples"):
        VQ("image", height=30)
    with pytest.raises(ValueError, match="frames=1"):
        VQ("image", frames=2)


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_improve_what_comes_back(name):
    codec = TRAINED[name]
    recipe = training.CodecRecipe("t", codec, "", steps=60, batch_size=8)
    items = [codec.fit(item) for item in playground(codec.kind, 12)]
    state, seen = training.initial_state(recipe), []
    for step in range(61):
        if step in (1, 60):
            params = jax.device_get(state.params)
            pairs = [(i, codec_page.restored(codec, params, i)) for i in items]
            seen.append(codec_page.decibels(codec.kind, pairs))
        patches, mask = training.batch(recipe, items, step)
        state, _ = training.train_step(recipe, state, patches, mask, jnp.int32(step))
    assert seen[1] > seen[0] + 1.0, seen


def test_a_model_saves_and_reloads_its_codecs(tmp_path):
    """The same codes, and the same media from them, after a trip over the disk."""
    bundle = playground_bundle("48x1")
    trained = {codec.kind: codec for codec in (IMAGE, AUDIO, FOLDED)}
    params = {kind: params_of(codec) for kind, codec in trained.items()}
    coder = anything.make_coder(bundle.tokenizer, 0, list(trained.values()), params)
    assert anything.padded_vocab(coder) >= coder.grammar.vocab_size
    hub.save(dataclasses.replace(bundle, coder=coder), tmp_path / "model")
    again = hub.load(tmp_path / "model").coder
    assert again.codecs == trained and again.grammar == coder.grammar
    assert again.grammar.block("audio").frame == AUDIO.codebooks
    for kind in trained:
        (item,) = playground(kind)
        part = Part(kind, data=item, meta={"rate": 8000} if kind == "audio" else {})
        ids = coder.ids(part)
        assert np.array_equal(again.ids(part), ids)
        again.grammar.streams(np.append(again.grammar.block(kind).open_id, ids))
        assert all(
            np.array_equal(value, params[kind][path])
            for path, value in again.params[kind].items()
        )
    ids = coder.ids(Part("image", data=playground("image")[0]))
    picture, _ = media.load(again.part("image", ids))
    assert picture.shape == (32, 32, 3)
    with pytest.raises(ValueError, match="8000 Hz"):
        coder.ids(Part("audio", data=np.zeros(800, np.float32), meta={"rate": 16000}))


def test_save_and_load_of_a_codec_alone(tmp_path):
    codecs.save(tmp_path, IMAGE, params_of(IMAGE))
    codec, params = codecs.load(tmp_path)
    (item,) = playground("image")
    assert codec == IMAGE
    expected = IMAGE.encode(params_of(IMAGE), item)
    assert np.array_equal(codec.encode(params, item), expected)
    with pytest.raises(FileNotFoundError, match="no trained codec"):
        codecs.load(tmp_path / "nowhere")


def test_defaults_are_sound():
    for kind in (Palette, Notes, VQ, AudioVQ):
        codec = kind()
        assert codec.length % codec.frame == 0 and codec.size > 1
