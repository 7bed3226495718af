"""EnCodec and Mimi give what transformers gives, for any length, and keep the contract."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from alanything_jax import hub
from alanything_jax.hub.source import tiny_bundle, with_codecs
from alanything_jax.models import codecs
from alanything_jax.models.codecs import seanet
from alanything_jax.schema import Part

# 800 samples a second, 8 (EnCodec) and 16 (Mimi) samples a frame.
SIZES = {
    "sampling_rate": 800,
    "num_filters": 4,
    "upsampling_ratios": [4, 2],
    "codebook_size": 16,
    "num_residual_layers": 2,
}
ENCODEC = SIZES | {"hidden_size": 8, "target_bandwidths": [0.8, 1.6]}
MIMI = SIZES | {
    "hidden_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 5,
    "num_semantic_quantizers": 2,
    "upsample_groups": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "norm_eps": 1e-3,
}
PLAIN = {"pad_mode": "constant", "use_conv_shortcut": False, "kernel_size": 5}
UNPROJECTED = {"vector_quantization_hidden_dimension": 16, "codebook_dim": 16}
VARIANTS = {
    "encodec": ("encodec", {}),
    "encodec_plain": ("encodec", PLAIN | {"num_lstm_layers": 1}),
    "encodec_replicate": ("encodec", {"pad_mode": "replicate", "compress": 1}),
    "mimi": ("mimi", {}),
    "mimi_other": (
        "mimi",
        UNPROJECTED | {"upsample_groups": 4, "use_conv_shortcut": True},
    ),
}
# Below what reflection needs, not a multiple of a hop, whole frames, beyond the window.
LENGTHS = (1, 3, 8, 37, 160, 250)


def theirs(kind, **changes):
    """A model of transformers none of whose arrays are what it begins with."""
    torch.manual_seed(0)
    config, model = {
        "encodec": (transformers.EncodecConfig, transformers.EncodecModel),
        "mimi": (transformers.MimiConfig, transformers.MimiModel),
    }[kind]
    model = model(config(**(ENCODEC if kind == "encodec" else MIMI) | changes)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("layernorm.weight", "original0", "cluster_usage")):
                value.uniform_(0.5, 1.5)
            elif "codebook.embed" in name:
                value.normal_(0, 0.5)
            elif name.endswith(("bias", "scale")):
                value.normal_(0, 0.3)
            elif name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")):
                # As drawn at first (0.02), attention is even and rotation hides.
                value.normal_(0, 0.4)
            elif name.startswith("decoder") and name.endswith("layers.10.conv.weight"):
                # The last layer: samples about -1..1.
                value.mul_(0.05)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name of a variant -> transformers' model, its directory, our codec and arrays."""
    found = {}

    def make(name):
        if name not in found:
            kind, changes = VARIANTS[name]
            model, place = theirs(kind, **changes), tmp_path_factory.mktemp(name)
            model.save_pretrained(place)
            found[name] = (model, place, *codecs.load(place))
        return found[name]

    return make


def tone(count, seed=0):
    return np.random.default_rng(seed).normal(0, 0.4, count).astype(np.float32)


def their_codes(model, samples, codebooks):
    """[codebooks, frames]."""
    given = torch.tensor(samples)[None, None]
    if model.config.model_type == "mimi":
        return model.encode(given, num_quantizers=codebooks).audio_codes[0].numpy()
    bandwidth = {2: 0.8, 4: 1.6}[codebooks]
    return model.encode(given, bandwidth=bandwidth).audio_codes[0, 0].numpy()


def their_audio(model, codes):
    """Codes [codebooks, frames] -> samples."""
    given = torch.tensor(codes)[None]
    if model.config.model_type == "mimi":
        return model.decode(given).audio_values[0, 0].numpy()
    return model.decode(given[None], [None]).audio_values[0, 0].numpy()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_codes_and_audio_are_those_of_transformers(made, name):
    model, _, codec, params = made(name)
    codec = dataclasses.replace(codec, codebooks=4)
    seen, worst = set(), 0.0
    for count in LENGTHS:
        samples = tone(count, count)
        expected = their_codes(model, samples, 4)
        codes = codec.encode(params, samples)
        np.testing.assert_array_equal(codes, expected.T.reshape(-1))
        seen |= {(n % 4, int(code)) for n, code in enumerate(codes)}
        # Of many kinds of codes, not of a few that happened to be near.
        codes = np.random.default_rng(count).integers(0, 16, expected.shape)
        audio, frames = their_audio(model, codes), codes.shape[1]
        assert len(audio) == frames * codec.hop and np.abs(audio).max() > 0.05
        padded = np.zeros((4, 32), np.int32)
        padded[:, :frames] = codes
        got = np.asarray(seanet.to_audio(codec, params, padded, frames))
        worst = max(worst, np.abs(got[: len(audio)] - audio).max())
        np.testing.assert_allclose(got[: len(audio)], audio, atol=1e-5)
    assert len(seen) > 16, seen
    print(f"{name}: {len(seen)} of 64 codes seen, audio differs by {worst:.1e}")


@pytest.mark.parametrize("name, codebooks", [("encodec", 2), ("mimi", 2), ("mimi", 5)])
@torch.no_grad()
def test_fewer_or_all_codebooks(made, name, codebooks):
    model, _, codec, params = made(name)
    assert codec.codebooks == {"encodec": 2, "mimi": 5}[name]
    codec, samples = dataclasses.replace(codec, codebooks=codebooks), tone(100)
    expected = their_codes(model, samples, codebooks)
    np.testing.assert_array_equal(
        codec.encode(params, samples).reshape(-1, codebooks).T, expected
    )
    audio = codec.decode(params, expected.T.reshape(-1))
    expected = np.clip(their_audio(model, expected), -1, 1)
    np.testing.assert_allclose(audio, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_padding_changes_nothing(made, name):
    """Whatever lies behind the real samples and codes, and in whatever room."""
    *_, codec, params = made(name)
    codec = dataclasses.replace(codec, codebooks=4)
    frames, rng = -(-60 // codec.hop), np.random.default_rng(1)
    samples, codes = tone(256), rng.integers(0, 16, (2, 4, 32)).astype(np.int32)
    whole = np.asarray(seanet.to_codes(codec, params, samples, 60))
    bare = np.pad(samples[:60], (0, 8 * codec.hop - 60))
    again = np.asarray(seanet.to_codes(codec, params, bare, 60))
    assert again.shape == (4, 8) and whole.shape == (4, 256 // codec.hop)
    np.testing.assert_array_equal(again[:, :frames], whole[:, :frames])
    codes[1, :, :frames] = codes[0, :, :frames]
    one, two = (np.asarray(seanet.to_audio(codec, params, c, frames)) for c in codes)
    at = frames * codec.hop
    np.testing.assert_allclose(one[:at], two[:at], atol=1e-6)
    assert np.abs(one[at:] - two[at:]).max() > 1e-2


@pytest.mark.parametrize("spelling", ["weight_g weight_v", "weight", "bfloat16"])
def test_weight_norm_in_any_spelling(made, tmp_path, spelling):
    model, place, codec, params = made("encodec")
    found, out = load_file(place / "model.safetensors"), {}
    new = [f"parametrizations.weight.original{n}" for n in (0, 1)]
    for path, value in found.items():
        stem = path.removesuffix(new[0])
        if spelling == "weight" and path.endswith("original0"):
            layer = model.get_submodule(stem.removesuffix("."))
            out[f"{stem}weight"] = layer.weight.detach().numpy()
        elif spelling == "weight_g weight_v":
            for old, ours in zip(spelling.split(), new, strict=True):
                path = path.replace(ours, old)
            out[path] = value
        elif not path.endswith("original1") or spelling == "bfloat16":
            out[path] = value
    if spelling == "bfloat16":
        bfloat16 = jax.numpy.bfloat16
        out = {path: value.astype(bfloat16) for path, value in out.items()}
    save_file(out, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((place / "config.json").read_text())
    again, others = codecs.load(tmp_path)
    assert again == codec and set(others) == set(params)
    for path, value in params.items():
        assert others[path].dtype == np.float32
        tolerance = 3e-2 if spelling == "bfloat16" else 1e-6
        np.testing.assert_allclose(others[path], value, atol=tolerance)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_save_and_load(made, tmp_path, name):
    *_, codec, params = made(name)
    codec = dataclasses.replace(codec, codebooks=3, max_seconds=2)
    codecs.save(tmp_path, codec, params)
    again, others = codecs.load(tmp_path)
    assert again == codec and set(others) == set(params)
    assert all(np.array_equal(others[path], params[path]) for path in params)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_a_text_model_speaks_through_it(made, tmp_path, name):
    """A Hugging Face directory as a codec of the any-to-any model, over the disk too."""
    _, place, codec, params = made(name)
    bundle = with_codecs(tiny_bundle("llama"), [str(place)])
    block = bundle.coder.grammar.block("audio")
    assert (block.size, block.frame, block.stop) == (16, codec.codebooks, True)
    assert block.length == 10 * 800 // codec.hop * codec.codebooks
    hub.save(bundle, tmp_path / "model")
    again = hub.load(tmp_path / "model").coder
    assert again.codecs["audio"] == codec
    part = Part("audio", data=tone(100), meta={"rate": 800})
    ids = bundle.coder.ids(part)
    assert np.array_equal(again.ids(part), ids)
    np.testing.assert_array_equal(
        ids[:-1] - block.start, codec.encode(params, tone(100))
    )
    again.grammar.streams(np.append(block.open_id, ids))
    assert again.part("audio", ids).data[:4] == b"RIFF"
    with pytest.raises(ValueError, match="24000 Hz; the codec takes 800 Hz"):
        again.ids(dataclasses.replace(part, meta={"rate": 24000}))


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_media_codes_and_settings_it_cannot_take(made, name):
    *_, codec, params = made(name)
    for wrong in (tone(0), tone(8).astype(np.float64), tone(8)[None]):
        with pytest.raises(ValueError, match=r"not float32 \[samples\]"):
            codec.encode(params, wrong)
    short = dataclasses.replace(codec, max_seconds=0.5)
    assert len(short.encode(params, tone(400))) == short.length
    with pytest.raises(ValueError, match="0.50 s of audio; the codec takes 0.50 s"):
        short.encode(params, tone(401))
    for count in (0, codec.codebooks + 1, codec.length + codec.codebooks):
        with pytest.raises(ValueError, match="whole frames"):
            codec.decode(params, np.zeros(count, int))
    with pytest.raises(ValueError, match=r"0 \.\. 15"):
        codec.decode(params, np.full(codec.codebooks, 16))
    with pytest.raises(ValueError, match="codebooks=9: give"):
        dataclasses.replace(codec, codebooks=9)
    with pytest.raises(ValueError, match="decoder.layers.0.conv/bias: None, expected"):
        partial = {k: v for k, v in params.items() if k != "decoder.layers.0.conv/bias"}
        codec.decode(partial, np.zeros(codec.codebooks, int))


UNSUPPORTED = [
    ("encodec", {"normalize": True}, "normalize=True"),
    ("encodec", {"chunk_length_s": 1.0, "overlap": 0.01}, "chunk_length_s=1.0"),
    ("encodec", {"audio_channels": 2}, "audio_channels=2"),
    ("encodec", {"norm_type": "time_group_norm"}, "norm_type='time_group_norm'"),
    ("encodec", {"use_causal_conv": False}, "use_causal_conv=False"),
    ("encodec", {"trim_right_ratio": 0.5}, "trim_right_ratio=0.5"),
    ("encodec", {"hidden_size": 4}, "expected"),
    ("encodec", {"target_bandwidths": [0.8, 4.0]}, "no tensor 'quantizer.layers.4"),
    ("encodec", {"model_type": "dac"}, r"'dac'; codecs.*'encodec'.*'mimi'"),
    ("mimi", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("mimi", {"attention_bias": True}, "attention_bias=True"),
    ("mimi", {"rope_parameters": {"rope_type": "linear"}}, "rope_type='linear'"),
]


@pytest.mark.parametrize("name, changes, says", UNSUPPORTED)
def test_a_config_that_is_not_supported(made, tmp_path, name, changes, says):
    place = made(name)[1]
    config = json.loads((place / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(place / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        codecs.load(tmp_path)
