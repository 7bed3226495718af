"""Media to encoders' inputs, against transformers' own processors and encoder helpers.

torchvision is not installed, so that transformers' video processors cannot be imported:
their functions are lifted out of their files (`lifted`), and their resize, which is
torch's, is called directly.
"""

import __future__

import ast
import io
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import vision_utils
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import (
    Gemma3ImageProcessorPil,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as hf_omni
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from alanything_jax.data import groups, media, preprocess
from alanything_jax.data.media import MediaError, MediaLimits
from alanything_jax.data.preprocess import audio, images, video
from alanything_jax.schema import Part

RNG = np.random.default_rng(0)
# height, width: odd, one pixel, extreme, exact, larger and smaller than the target.
SIZES = [(37, 53), (1, 1), (3, 200), (150, 7), (56, 56), (201, 99), (20, 31)]


def picture(*shape):
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def vision(**changes):
    return {"vision_config": {"image_size": 56, "patch_size": 14} | changes}


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"size": {"height": 56, "width": 56}}
CROP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
# name -> (HF's processor, config.json, side of a pooled block, places before patches)
SQUARES = {
    "clip": (CLIPImageProcessorPil(**CROP), {"model_type": "llava", **vision()}, 1, 1),
    "clip-70": (
        CLIPImageProcessorPil(**CROP | {"size": {"shortest_edge": 70}}, resample=1),
        {"model_type": "llava", "vision_feature_select_strategy": "full", **vision()},
        1,
        1,
    ),
    "llava-pad": (
        LlavaImageProcessorPil(**CROP, do_pad=True),
        {"model_type": "llava", **vision()},
        1,
        1,
    ),
    "gemma3": (
        Gemma3ImageProcessorPil(**SQUARE),
        {"model_type": "gemma3", "mm_tokens_per_image": 4, **vision(patch_size=7)},
        4,
        0,
    ),
    "janus": (
        JanusImageProcessorPil(**SQUARE, **HALF),
        {"model_type": "janus", **vision(patch_size=8)},
        1,
        0,
    ),
}


@pytest.mark.parametrize("name", SQUARES)
def test_square_pictures(name):
    processor, config, pool, before = SQUARES[name]
    settings = preprocess.settings_from_hf(processor.to_dict(), config)["image"]
    patch = config["vision_config"]["patch_size"]
    side = 56 // patch
    for size in SIZES:
        array = picture(*size)
        made = preprocess.medium(settings, array, {})
        pixels = np.stack(processor(Image.fromarray(array))["pixel_values"])
        assert pixels.shape == (1, 3, 56, 56)
        (same,) = preprocess.mediums_of_pixels(settings, pixels)
        patches, place = made.arrays["patches"], made.arrays["position"]
        assert patches.dtype == np.float32 and place.dtype == np.int32
        assert np.array_equal(patches, same.arrays["patches"])
        assert sorted(place) == list(range(side**2 + before))
        assert (made.kind, made.encoder, made.grid) == ("image", "vision", None)
        assert made.arrays["segment"].tolist() == [1] * len(place)
        assert not patches[:before].any()
        for n in range(before, len(place)):
            row, col = divmod(int(place[n]) - before, side)
            cut = np.s_[row * patch : (row + 1) * patch]
            cut = cut, np.s_[col * patch : (col + 1) * patch]
            assert np.array_equal(patches[n], pixels[0, :, *cut].ravel())
            block = row // pool * (side // pool) + col // pool
            assert block == (n - before) // pool**2  # HF's order of the averages
    first = before if config.get("vision_feature_select_strategy") != "full" else 0
    assert made.outputs.tolist() == list(range(first, len(place) // pool**2))


@pytest.mark.parametrize(
    "family, image, patch, encoder_output",
    [("llava", 336, 14, (577, 1, 576)), ("gemma3", 896, 14, (4096, 0, 255))],
)
def test_the_real_sizes(family, image, patch, encoder_output):
    config = {"model_type": family, **vision(image_size=image, patch_size=patch)}
    settings = preprocess.settings_from_hf({}, config)["image"]
    made = preprocess.medium(settings, picture(48, 64), {})
    count, first, last = encoder_output
    assert made.arrays["patches"].shape == (count, 3 * patch * patch)
    assert (made.outputs[0], made.outputs[-1]) == (first, last)


QWEN = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"window_size": 112, "tokens_per_second": 2},
    "qwen3_vl": {"patch_size": 16, "num_position_embeddings": 49},
}


def qwen(family, config=None, **changes):
    config = {} if config is None else config
    hf = {"model_type": family, "vision_config": QWEN[family] | changes}
    return preprocess.settings_from_hf(config, hf)


@pytest.mark.parametrize("family", QWEN)
def test_qwen_pictures(family):
    size = {"shortest_edge": 40 * 40, "longest_edge": 400 * 300}
    processor = Qwen2VLImageProcessorPil(
        size=size, patch_size=QWEN[family].get("patch_size", 14), resample=3
    )
    settings = qwen(family, processor.to_dict())["image"]
    arrays = [picture(*size) for size in (*SIZES, (700, 450))]
    made = [preprocess.medium(settings, array, {}) for array in arrays]
    theirs = processor([Image.fromarray(a) for a in arrays], return_tensors="np")
    values, grids = theirs["pixel_values"], theirs["image_grid_thw"]
    ours = np.concatenate([m.arrays["patches"] for m in made])
    assert ours.dtype == np.float32 and np.array_equal(ours, values)
    again = preprocess.mediums_of_grid(settings, values, grids)
    for one, two, (_, h, w) in zip(made, again, grids, strict=True):
        for name, array in one.arrays.items():
            assert np.array_equal(array, two.arrays[name]), name
        assert one.outputs.tolist() == list(range(h * w // 4))
        places = [[0, a, b] for a in range(h // 2) for b in range(w // 2)]
        assert one.grid.tolist() == two.grid.tolist() == places


GRIDS = np.array([[1, 4, 6], [3, 8, 10], [2, 18, 2], [1, 16, 16], [1, 2, 2]])


def clips(family):
    settings = qwen(family)["video"]
    values = RNG.standard_normal((GRIDS.prod(1).sum(), 8)).astype(np.float32)
    made = preprocess.mediums_of_grid(settings, values, GRIDS, "video")
    assert np.array_equal(np.concatenate([m.arrays["patches"] for m in made]), values)
    return made


def test_the_types_of_arrays():
    """What shares a row shares a dtype: int32, and float32 for what is weighed."""
    made = [m for family in QWEN for m in clips(family)]
    made += [preprocess.medium(LLAVA, picture(9, 9), {})]
    omni = preprocess.settings_from_hf({}, {"model_type": "qwen2_5_omni"})["audio"]
    made += [preprocess.medium(s, WAVE, {"rate": 16000}) for s in (SOUND, omni)]
    for medium in made:
        for name, array in medium.arrays.items():
            floats = name in ("patches", "pos_weight")
            assert array.dtype == (np.float32 if floats else np.int32), name
            assert len(array) == len(medium.arrays["patches"])
        assert medium.outputs.dtype == np.int32
        if medium.grid is not None:
            assert medium.grid.dtype == np.int32
            assert medium.grid.shape == (len(medium.outputs), 3)


def joined(made, name):
    return np.concatenate([medium.arrays[name] for medium in made])


def test_segments_and_positions():
    made, grids = clips("qwen2_vl"), torch.tensor(GRIDS)
    assert set(made[0].arrays) == {"patches", "segment", "position"}
    expected = vision_utils.get_vision_position_ids(grids, 2).numpy()
    assert np.array_equal(joined(made, "position"), expected)
    ends = vision_utils.get_vision_cu_seqlens(grids).numpy()
    first = np.cumsum([0, *GRIDS[:, 0]])
    segment = np.concatenate([m.arrays["segment"] + f for m, f in zip(made, first)])
    assert np.array_equal(segment, np.repeat(np.arange(1, len(ends)), np.diff(ends)))


def test_windows():
    """Equal numbers are HF's windows, whatever its order; and different in each frame."""
    made = clips("qwen2_5_vl")
    for medium, grid in zip(made, GRIDS):
        order, ends = vision_utils.get_vision_window_index(
            torch.tensor(grid[None]), 2, 112, 14
        )
        window = medium.arrays["window"]
        assert window.min() == 1
        ours = window.reshape(-1, 4)
        assert (ours == ours[:, :1]).all()
        ours = ours[:, 0][order.numpy()]
        theirs = np.repeat(np.arange(len(ends) - 1), np.diff(ends.numpy()) // 4)
        pairs = set(zip(ours.tolist(), theirs.tolist()))
        assert len(pairs) == len(set(ours.tolist())) == len(ends) - 1


def test_interpolated_positions():
    made = clips("qwen3_vl")
    index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
        torch.tensor(GRIDS), 7, "bilinear", True, 2
    )
    ours = joined(made, "pos_weight")
    table = RNG.standard_normal(49)
    assert ours.dtype == np.float32 and joined(made, "pos_index").dtype == np.int32
    assert np.array_equal(joined(made, "pos_index"), index.numpy())
    np.testing.assert_allclose(ours, weight.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        (table[joined(made, "pos_index")] * ours).sum(1),
        (table[index.numpy()] * weight.numpy()).sum(1),
        atol=1e-5,
    )


@pytest.mark.parametrize("seconds", [1.0, 2 / 3, 0.4, 2 / 24, 2 / 25, 2 / 1.86])
def test_time_of_a_clip(seconds):
    grid, values = np.array([[60, 4, 6]]), np.zeros((60 * 24, 8), np.float32)

    def made(settings, kind="video"):
        (medium,) = preprocess.mediums_of_grid(
            settings, values, grid, kind, [seconds] if kind == "video" else None
        )
        return medium.grid

    second = torch.tensor(seconds)
    expected = Qwen2_5_VLModel.get_vision_position_ids(
        None, 0, torch.tensor(grid[0]), 1, 2, 2 * second
    )
    settings = qwen("qwen2_5_vl")["video"]
    assert np.array_equal(made(settings), expected.numpy().T)
    omni = preprocess.settings_from_hf({}, {"model_type": "qwen2_5_omni"})["video"]
    expected = (torch.arange(60) * second.float() * 25).long().numpy()
    assert np.array_equal(made(omni)[:, 0], np.repeat(expected, 6))
    for family in ("qwen2_vl", "qwen3_vl"):
        counted = made(qwen(family)["video"])[:, 0]
        assert np.array_equal(counted, np.repeat(np.arange(60), 6))


def lifted(module, *names):
    """Functions out of a transformers file that cannot be imported, as they stand."""
    path = Path(transformers.__file__).parent / "models" / module
    tree = ast.parse(path.read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    tree.body = [n for n in found if n.name in names]
    code = compile(tree, str(path), "exec", __future__.annotations.compiler_flag)
    scope = {"torch": torch, "np": np, "math": math}
    exec(code, scope)
    return types.SimpleNamespace(**{name: scope[name] for name in names})


V2 = lifted("qwen2_vl/video_processing_qwen2_vl.py", "sample_frames", "patchify")
V3 = lifted(
    "qwen3_vl/video_processing_qwen3_vl.py", "sample_frames", "smart_resize", "patchify"
)
TIMES = lifted("qwen3_vl/processing_qwen3_vl.py", "_calculate_timestamps")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("target", [{"fps": 2.0}, {"fps": 7.3}, {"num_frames": 7}])
def test_sampled_frames(ends, target):
    theirs = types.SimpleNamespace(
        fps=None, num_frames=None, min_frames=4, max_frames=40, temporal_patch_size=2
    )
    sampling = video.Sampling(**target, min_frames=4, max_frames=40, ends=ends)
    for total in (*range(8, 120, 3), 997):
        for fps in (1.0, 5.0, 23.976, 30.0):
            known = types.SimpleNamespace(total_num_frames=total, fps=fps)
            expected = np.asarray(
                (V3 if ends else V2).sample_frames(theirs, known, **target)
            )
            kept = video.sample(sampling, total, fps)
            assert np.array_equal(kept, expected), (total, fps)
            times = TIMES._calculate_timestamps(None, expected.tolist(), fps)
            np.testing.assert_allclose(video.seconds(kept, fps), times, rtol=1e-12)


def test_few_frames():
    for ends in (False, True):
        two = video.Sampling(fps=2.0, ends=ends)
        assert video.sample(two, 1, 25.0).tolist() == [0]
        assert video.sample(video.Sampling(ends=ends), 3, 0.0).tolist() == [0, 1, 2]
        with pytest.raises(MediaError, match="frame rate is 0.0"):
            video.sample(two, 9, 0.0)
        with pytest.raises(MediaError, match="8 frames are asked of a video of 3"):
            video.sample(video.Sampling(num_frames=8, ends=ends), 3, 1.0)


def test_clip_sizes():
    for frames in (2, 3, 5, 20):
        for height, width in (*SIZES, (720, 1280), (31, 3000)):
            expected = V3.smart_resize(
                frames, height, width, 2, 32, min_pixels=9000, max_pixels=10**6
            )
            found = images.smart_size(height, width, 32, 9000, 10**6, (frames, 2))
            assert found == expected


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_qwen_videos(family, frames):
    """Frames of the right size pass exactly. Resized ones are within two of 255 levels,
    even of noise: Pillow (here, and HF's pictures) and torch (HF's videos) round apart."""
    side = 64 if family == "qwen3_vl" else 56
    pixels = side * side * (max(frames, 2) if family == "qwen3_vl" else 1)
    limits = {"min_pixels": int(0.9 * pixels), "max_pixels": int(1.05 * pixels)}
    processor = {"video_processor": limits | {"do_sample_frames": False}}
    settings = qwen(family, processor)["video"]
    mean = np.array(settings.look.mean) * 255
    std = np.array(settings.look.std) * 255
    for size in ((side, side), (90, 90), (31, 31)):
        clip = picture(frames, *size)
        made = preprocess.medium(settings, clip, {"fps": 4.0})
        channels = torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)))
        levels = torch.nn.functional.interpolate(
            channels, (side, side), mode="bicubic", antialias=True
        )
        values = (levels.permute(0, 2, 3, 1).numpy() - mean) / std
        values = torch.tensor(values.transpose(0, 3, 1, 2)[None], dtype=torch.float32)
        patches, *grid = (V3 if family == "qwen3_vl" else V2).patchify(
            None, values, settings.patch_size, 2, 2
        )
        assert grid == [(frames + 1) // 2, 4, 4] and made.kind == "video"
        assert made.grid[-1].tolist()[1:] == [1, 1]
        gap = np.abs(made.arrays["patches"] - patches[0].numpy())
        allowed = 1e-6 if size == (side, side) else 2.01 / std.min()
        assert gap.max() <= allowed and (gap > 1e-6).mean() < 0.1
    # 4 frames a second, 2 to a temporal patch; 2.5-VL has 2 steps a second.
    assert np.unique(made.grid[:, 0]).tolist() == list(range((frames + 1) // 2))


def test_a_sampled_clip_tells_its_real_time():
    """24 frames at 8 a second, sampled at 2: 6 frames, 1 s to a temporal patch."""
    config = {"do_sample_frames": True, "fps": 2, "min_pixels": 1}
    settings = qwen("qwen2_5_vl", config, tokens_per_second=4)["video"]
    clip = (
        np.zeros((24, 28, 28, 3), np.uint8)
        + np.arange(24, dtype=np.uint8)[:, None, None, None]
    )
    made = preprocess.medium(settings, clip, {"fps": 8.0})
    assert made.grid.tolist() == [[0, 0, 0], [4, 0, 0], [8, 0, 0]]
    look = settings.look
    levels = made.arrays["patches"][::4, :1] * look.std[0] + look.mean[0]
    assert np.round(levels[:, 0] * 255).tolist() == [0, 8, 16]


def saved(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


RGB = Image.fromarray(picture(41, 67))
FILES = {
    "jpeg": (saved(RGB, "JPEG"), True),
    "grey": (saved(RGB.convert("L"), "PNG"), True),
    "cmyk": (saved(RGB.convert("CMYK"), "JPEG"), True),
    "palette": (saved(RGB.quantize(50), "PNG"), True),
    "rgba": (saved(RGB.convert("RGBA"), "PNG"), True),
    # Here the loader differs from Pillow's `convert`, on purpose; the rest must not.
    "half clear": (
        saved(Image.fromarray(RNG.integers(0, 256, (41, 67, 4), np.uint8)), "PNG"),
        False,
    ),
    "16 bits": (
        saved(Image.fromarray(RNG.integers(0, 2**16, (41, 67), "u2")), "PNG"),
        0,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind(name):
    raw, as_pillow = FILES[name]
    processor = Qwen2VLImageProcessorPil()
    settings = qwen("qwen2_vl", processor.to_dict())["image"]
    array, meta = media.load(Part("image", data=raw))
    made = preprocess.medium(settings, array, meta)
    given = Image.open(io.BytesIO(raw)) if as_pillow else array
    theirs = processor(given, return_tensors="np")["pixel_values"]
    assert np.array_equal(made.arrays["patches"], theirs)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [481, 1600, 47_999, 479_900, 480_000, 500_001])
def test_log_mel(bins, samples):
    """HF's numpy path in full; its torch path works in single precision."""
    wave = (0.1 * RNG.standard_normal(samples)).astype(np.float32)
    wave[samples // 2 :] *= np.linspace(1, 0, samples - samples // 2) ** 8
    extract = transformers.WhisperFeatureExtractor(feature_size=bins)
    theirs = extract(
        wave, sampling_rate=16000, return_attention_mask=True, return_tensors="np"
    )
    hf = {"model_type": "qwen2_audio", "audio_config": {"num_mel_bins": bins}}
    settings = preprocess.settings_from_hf(extract.to_dict(), hf)["audio"]
    made = preprocess.medium(settings, wave, {"rate": 16000})
    features, mask = theirs["input_features"], theirs["attention_mask"]
    mel = made.arrays["patches"]
    assert mel.shape == (3000, bins) and mel.dtype == np.float32
    np.testing.assert_allclose(mel, features[0].T, atol=1e-4)
    padded = np.pad(wave[:480_000], (0, max(0, 480_000 - samples)))
    exact = extract._np_extract_fbank_features(padded[None], "cpu")[0]
    np.testing.assert_allclose(mel, exact.T, atol=1e-6)
    assert np.array_equal(made.arrays["segment"], mask[0])
    _, count = Qwen2AudioEncoder._get_feat_extract_output_lengths(None, mask.sum())
    assert made.outputs.tolist() == list(range(count)) and made.grid is None
    (same,) = preprocess.mediums_of_mel(settings, features, mask)
    assert np.array_equal(same.arrays["patches"], features[0].T)
    assert np.array_equal(same.outputs, made.outputs)


@pytest.mark.parametrize("samples", [481, 32_000, 32_001, 75_000, 75_200])
def test_chunks_of_omni(samples):
    wave = (0.1 * RNG.standard_normal(samples)).astype(np.float32)
    extract = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    theirs = extract(
        wave, sampling_rate=16000, return_attention_mask=True, return_tensors="np"
    )
    features, mask = theirs["input_features"], theirs["attention_mask"]
    settings = preprocess.settings_from_hf(
        extract.to_dict(), {"model_type": "qwen2_5_omni_thinker"}
    )["audio"]
    made = preprocess.medium(settings, wave, {"rate": 16000})
    (same,) = preprocess.mediums_of_mel(settings, features, mask)
    np.testing.assert_allclose(
        made.arrays["patches"], same.arrays["patches"], atol=1e-4
    )
    lengths = torch.tensor([mask.sum()])
    padded, sizes = hf_omni.chunk_and_pad_features(
        torch.tensor(features[0][:, mask[0] > 0]), lengths, 100
    )
    segment, count = same.arrays["segment"], len(sizes)
    assert len(segment) == 200 * count
    for n, (chunk, size) in enumerate(zip(padded, sizes.tolist())):
        rows = same.arrays["patches"][200 * n : 200 * (n + 1)]
        assert np.array_equal(rows[:size], chunk.numpy().T[:size])
        assert not rows[size:].any()
        assert segment[200 * n : 200 * (n + 1)].tolist() == [n + 1] * size + [0] * (
            200 - size
        )
    assert same.arrays["position"].tolist() == list(range(200)) * count
    # Output k averages what the convolution gives at 2k and 2k + 1.
    pool = hf_omni.get_pool_indices(lengths).numpy()
    assert np.array_equal(2 * made.outputs, pool)
    assert np.array_equal(same.outputs, made.outputs)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44099, 48000, 1001])
def test_resampling(rate):
    """A tone stays that tone; what 16 kHz cannot hold vanishes."""
    length = rate // 2 + 1
    tone = 0.45 * min(rate, 16000)
    wave = np.sin(2 * np.pi * tone * np.arange(length) / rate).astype(np.float32)
    out = audio.resample(wave, rate)
    assert len(out) == math.ceil(length * 16000 / rate) and out.dtype == np.float32
    expected = np.sin(2 * np.pi * tone * np.arange(len(out)) / 16000)
    edge = 1 + 80 * 16000 // min(rate, 16000)
    assert np.abs(out - expected)[edge:-edge].max() < 1e-4
    if rate > 16000:
        high = np.sin(2 * np.pi * 8100 * np.arange(length) / rate).astype(np.float32)
        assert np.abs(audio.resample(high, rate))[edge:-edge].max() < 1e-4


TONE = 0.5 * np.sin(np.arange(8000) * 0.3, dtype=np.float32)


def film(sound):
    """One frame, and a second of TONE on the left if `sound`."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        track = container.add_stream("flac", rate=8000) if sound else None
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8))
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode()])
        if sound:
            stereo = np.stack([TONE, np.zeros(8000)]) * 32767
            wave = av.AudioFrame.from_ndarray(
                stereo.astype(np.int16).T.reshape(1, -1), "s16", "stereo"
            )
            wave.rate, wave.pts = 8000, 0
            container.mux([*track.encode(wave), *track.encode()])
    return Part("video", data=out.getvalue())


def test_sound_goes_behind_its_video(tmp_path):
    """What TV2T asks about may be heard, and processors of videos leave it out."""
    (tmp_path / "a.mkv").write_bytes(film(True).data)
    (tmp_path / "b.mkv").write_bytes(film(False).data)
    rows = [
        {"video": name, "prompt": "<video>what?", "chosen": "a", "rejected": "b"}
        for name in ("a.mkv", "b.mkv")
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))

    def kinds(**options):
        read = groups.viewed(groups.Data(str(path), **options), str(path))
        return [[p.kind for p in e.prompt[0].parts] for _, _, e in read]

    assert kinds() == [["video", "text"]] * 2
    assert kinds(video_sound=True) == [["video", "audio", "text"], ["video", "text"]]


def test_the_sound_of_a_film():
    samples, meta = media.audio_of(film(True))
    assert meta == {"rate": 8000} and samples.dtype == np.float32
    assert len(samples) == 8000
    np.testing.assert_allclose(samples, TONE / 2, atol=1e-4)
    assert len(media.load(film(True))[0]) == 1
    assert media.audio_of(film(False)) is None
    gif = media.dump("video", picture(2, 8, 8))
    assert media.audio_of(Part("video", data=gif)) is None
    assert media.audio_of(Part("video", data=picture(2, 8, 8))) is None
    with pytest.raises(MediaError, match="sound of over 0 s"):
        media.audio_of(film(True), MediaLimits(max_seconds=0.5))
    with pytest.raises(MediaError, match="sound cannot be decoded"):
        media.audio_of(Part("video", data=b"junk"))


SOUND = preprocess.settings_from_hf({}, {"model_type": "qwen2_audio"})["audio"]
WAVE = np.ones(16000, np.float32)
LLAVA = preprocess.settings_from_hf({}, SQUARES["clip"][1])["image"]
CLIP = qwen("qwen2_5_vl")["video"]
SMALL = MediaLimits(max_pixels=100, max_frames=3, max_seconds=0.5)


@pytest.mark.parametrize(
    "settings, array, meta, limits, message",
    [
        (SOUND, WAVE[:0], {"rate": 16000}, None, "0 samples at 16000 Hz; allowed"),
        (SOUND, WAVE[:320], {"rate": 16000}, None, "2 frames .* too short"),
        (SOUND, WAVE, {"rate": 16000}, SMALL, r"to 0 s \(max_seconds\)"),
        (SOUND, WAVE, {}, None, "sound at 0 Hz; allowed"),
        (SOUND, WAVE, {"rate": 16000.5}, None, "16000.5 Hz; allowed are whole numbers"),
        (SOUND, np.append(WAVE, np.nan), {"rate": 8000}, None, "not finite"),
        (SOUND, WAVE[:, None], {"rate": 8000}, None, r"float32 \[16000, 1\]; float"),
        (SOUND, np.ones(9, np.int16), {"rate": 8000}, None, "int16"),
        (LLAVA, picture(10, 11), {}, SMALL, "11 x 10 pixels; allowed are 100"),
        (LLAVA, picture(0, 11), {}, None, "no frame or no pixel"),
        (LLAVA, picture(4, 4) / 255, {}, None, r"float64 \[4, 4, 3\]; uint8 \[height"),
        (LLAVA, picture(2, 4, 4), {}, None, r"uint8 \[2, 4, 4, 3\]; uint8 \[height"),
        # Its short side at 56, the other is 280,000 long.
        (LLAVA, picture(1, 5000), {}, MediaLimits(max_pixels=10**7), "280000 x 56"),
        (qwen("qwen2_vl")["image"], picture(1, 201), {}, None, "over 200 times"),
        (CLIP, picture(0, 8, 8), {"fps": 2.0}, None, "no frame or no pixel"),
        (CLIP, picture(4, 8, 8), {"fps": 2.0}, SMALL, "4 frames; allowed are 3"),
        (CLIP, picture(2, 8, 8), {}, None, "frame rate is 0.0"),
        (
            CLIP,
            picture(2, 8, 8),
            {"fps": 2.0},
            MediaLimits(max_clip_pixels=127),
            r"128 pixels in all frames; allowed are 127 \(max_clip_pixels\)",
        ),
    ],
)
def test_media_that_cannot_be_used(settings, array, meta, limits, message):
    with pytest.raises(MediaError, match=message):
        preprocess.medium(settings, array, meta, limits or MediaLimits())


def test_arrays_of_another_model():
    with pytest.raises(ValueError, match=r"takes \[N, 3, 56, 56\]"):
        preprocess.mediums_of_pixels(LLAVA, np.zeros((1, 3, 28, 28)))
    with pytest.raises(ValueError, match="one row for each"):
        preprocess.mediums_of_grid(CLIP, np.zeros((15, 8)), [[1, 4, 4]])
    with pytest.raises(ValueError, match="multiples of merge_size 2"):
        preprocess.mediums_of_grid(CLIP, np.zeros((12, 8)), [[1, 3, 4]])
    with pytest.raises(ValueError, match=r"takes \[N, 128, 3000\]"):
        preprocess.mediums_of_mel(SOUND, np.zeros((1, 128, 100)), np.ones((1, 100)))


def test_configs_of_the_hub():
    """As the repositories have them: old spellings, both processors in one file."""
    old = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}
    old |= {"size": {"min_pixels": 1, "max_pixels": 2}, "feature_size": 128}
    both = qwen("qwen2_5_vl", old)
    assert {(s.min_pixels, s.max_pixels) for s in both.values()} == {(3136, 12845056)}
    assert both["video"].sampling == video.Sampling()
    third = qwen(
        "qwen3_vl",
        {
            "image_processor": {"size": {"shortest_edge": 65536, "longest_edge": 9**8}},
            "video_processor": {"size": {"shortest_edge": 4096, "longest_edge": 5**9}},
        },
    )
    assert (third["image"].min_pixels, third["image"].max_pixels) == (65536, 9**8)
    assert (third["video"].min_pixels, third["video"].max_pixels) == (4096, 5**9)
    assert third["video"].sampling == video.Sampling(fps=2.0, ends=True)
    assert third["video"].per_clip and not third["image"].per_clip
    nested = {"thinker_config": {"audio_config": {"n_window": 50}}}
    omni = preprocess.settings_from_hf(old, {"model_type": "qwen2_5_omni", **nested})
    assert set(omni) == {"image", "video", "audio"}
    assert (omni["audio"].chunk, omni["audio"].max_frames) == (100, 30_000)
    assert omni["image"].max_pixels == 12845056
    assert omni["video"].max_pixels == 768 * 28 * 28


@pytest.mark.parametrize(
    "config, hf, message",
    [
        ({}, {"model_type": "llama"}, "no media preprocessing; known are gemma3, "),
        ({"do_resize": False}, SQUARES["clip"][1], "do_resize = False"),
        ({"crop_size": 28}, SQUARES["clip"][1], "crop_size 28 .* are 56 x 56"),
        ({"do_pan_and_scan": True}, SQUARES["gemma3"][1], "do_pan_and_scan = True"),
        ({"size": {"height": 9, "width": 8}}, SQUARES["janus"][1], "height': 9"),
        ({"merge_size": 4}, {"model_type": "qwen2_vl"}, "merge_size = 4 .* takes 2"),
        ({"dither": 0.1}, {"model_type": "qwen2_audio"}, "dither = 0.1"),
        ({"chunk_length": 20}, {"model_type": "qwen2_audio"}, "chunk_length = 20"),
        ({}, {"model_type": "janus", **vision(patch_size=9)}, "no whole number"),
        (
            {},
            {"model_type": "qwen2_5_omni_thinker", "audio_config": {"n_window": 5}},
            "n_window must be even",
        ),
        (
            {"cap_pixels_per_frame": True},
            {"model_type": "qwen2_vl"},
            "cap_pixels_per_frame = True",
        ),
    ],
)
def test_settings_that_are_not_supported(config, hf, message):
    with pytest.raises(ValueError, match=message):
        preprocess.settings_from_hf(config, hf)
