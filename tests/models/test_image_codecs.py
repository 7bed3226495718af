"""Chameleon's, Janus's and Emu3's codecs against transformers, and a decoder of our own."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers.models.chameleon import modeling_chameleon as chameleon
from transformers.models.chameleon.image_processing_pil_chameleon import (
    ChameleonImageProcessorPil,
)
from transformers.models.emu3 import modeling_emu3 as emu3
from transformers.models.janus import modeling_janus as janus
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from alanything_jax.models import codecs
from alanything_jax.models.codecs import emu3_vq, pictures, vqgan

NET = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
SMALL = {**NET, "num_embeddings": 40, "embed_dim": 8, "latent_channels": 16}
CONFIGS = {
    "chameleon": {**SMALL, "resolution": 32, "attn_resolutions": [16]},
    "janus": {**SMALL, "num_patches": 16},
    "emu3": {
        **NET,
        "codebook_size": 40,
        "attn_resolutions": [1],
        "hidden_size": 64,
        "num_attention_heads": 2,
    },
}
MODELS = {
    "chameleon": (chameleon.ChameleonVQVAE, hf.ChameleonVQVAEConfig),
    "janus": (janus.JanusVQVAE, hf.JanusVQVAEConfig),
    "emu3": (emu3.Emu3VQVAE, hf.Emu3VQVAEConfig),
}
PROCESSORS = {
    "chameleon": ChameleonImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ),
    "janus": JanusImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ),
    "emu3": hf.Emu3ImageProcessor(
        min_pixels=32**2, max_pixels=64**2, spatial_factor=2, image_std=[0.5] * 3
    ),
}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def shaken(model, seed=0):
    """Every array random, so that each matters; activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(value.shape, generator=generator)
        if "embedding" in name:
            value.data = noise
        elif value.ndim > 1:
            # Latents must lie far apart to have different codes.
            gain = 12 if name.startswith("quant_conv") else 1
            value.data = gain * noise / value[0].numel() ** 0.5
        elif "running_var" in name:
            value.data = 0.5 + noise.abs()
        elif value.ndim == 1:
            value.data = ("norm" in name and "weight" in name) + 0.2 * noise
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def tiny(request, tmp_path_factory):
    """(name, transformers' model, our codec with its lookup, arrays)."""
    name = request.param
    kind, config = MODELS[name]
    model = shaken(kind(config(**CONFIGS[name])))
    place = tmp_path_factory.mktemp(name)
    model.save_pretrained(place)
    codec, params = codecs.load(place)
    if name == "janus":
        assert codec.unit == "always"
        codec = dataclasses.replace(codec, unit="decode")
    return name, model, codec, params


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(x):
    """Channels last -> before height, for torch."""
    return torch.tensor(np.moveaxis(x, -1, -3))


@torch.no_grad()
def their_codes(name, model, pixels):
    size = [pixels.shape[-3:-1]] * len(pixels)
    if name == "emu3":
        return torch.stack(model.encode(first(pixels), size).image_tokens).numpy()
    codes = model.encode(first(pixels)).image_tokens
    return codes.reshape(len(pixels), size[0][0] // 2, size[0][1] // 2).numpy()


def assert_equal_codes(got, want):
    got = np.asarray(got)
    assert got.dtype == np.int32 and got.shape == want.shape
    off = np.argwhere(got != want)
    assert not len(off), f"{len(off)} of {want.size} codes differ, first at {off[:5]}"
    assert len(np.unique(want)) > 5


def test_codes_of_pictures(tiny):
    name, model, codec, params = tiny
    pixels = noise(2, 24, 36, 3)
    want = their_codes(name, model, pixels)
    assert want.shape == (2, 12, 18)
    assert_equal_codes(codec.codes(params, pixels), want)


@torch.no_grad()
def test_pixels_of_pictures(tiny):
    name, model, codec, params = tiny
    if name == "chameleon":
        with pytest.raises(ValueError, match="no decoder.*vqgan.ckpt"):
            codec.decode(params, np.zeros(codec.length, int))
        return
    codes = np.random.default_rng(1).integers(
        0, 40, (2, 16, 16 if name == "janus" else 10)
    )
    given = torch.tensor(codes)
    want = model.decode(given.flatten(1) if name == "janus" else given)
    got = codec.pixels(params, codes)
    assert got.shape == (2, 32, 2 * codes.shape[2], 3)
    assert want.std() > 0.1
    np.testing.assert_allclose(first(got), want, atol=2e-5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    model = shaken(emu3.Emu3VQVAE(hf.Emu3VQVAEConfig(**CONFIGS["emu3"])))
    place = tmp_path_factory.mktemp("clips")
    model.save_pretrained(place)
    codec, params = codecs.load(place)
    size = {"height": 16, "width": 24, "frames": 12}
    return model, dataclasses.replace(codec, kind="video", **size), params


@torch.no_grad()
@pytest.mark.slow
def test_clips_of_several_groups_of_frames(clips):
    model, codec, params = clips
    pixels = noise(2, 12, 16, 24, 3)
    want = their_codes("emu3", model, pixels)
    assert want.shape == (2, 3, 8, 12)
    assert_equal_codes(codec.codes(params, pixels), want)
    got, expected = codec.pixels(params, want), model.decode(torch.tensor(want))
    assert got.shape == pixels.shape
    np.testing.assert_allclose(first(got), expected, atol=2e-5)


def test_clips_keep_the_contract(clips):
    _, codec, params = clips
    clip = np.random.default_rng(0).integers(0, 256, (12, 30, 30, 3), np.uint8)
    codes = codec.encode(params, clip)
    assert codec.length == 288 and codes.shape == (288,) and codes.dtype == np.int32
    out = codec.decode(params, codes)
    assert out.shape == (12, 16, 24, 3) and out.dtype == np.uint8
    with pytest.raises(ValueError, match="11 frames, the codec takes 12"):
        codec.encode(params, clip[:11])
    with pytest.raises(ValueError, match="whole 4s"):
        dataclasses.replace(codec, frames=6)


@torch.no_grad()
def test_janus_reads_by_direction_as_it_was_trained(tmp_path):
    model = shaken(janus.JanusVQVAE(hf.JanusVQVAEConfig(**CONFIGS["janus"])))
    model.save_pretrained(tmp_path)
    codec, params = codecs.load(tmp_path)
    pixels = noise(2, 24, 36, 3)
    latents = model.quant_conv(model.encoder(first(pixels))).permute(0, 2, 3, 1)
    rows = functional.normalize(model.quantize.embedding.weight, dim=-1)
    want = (functional.normalize(latents, dim=-1) @ rows.T).argmax(-1).numpy()
    assert_equal_codes(codec.codes(params, pixels), want)
    assert (want != their_codes("janus", model, pixels)).any()


# --- Chameleon's decoder: as taming-transformers lays it out ---


def norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(out)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x):
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        same = x.shape[1] == y.shape[1]
        return y + (x if same else self.nin_shortcut(x))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        for name in ("q", "k", "v", "proj_out"):
            self.add_module(name, nn.Conv2d(width, width, 1))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (part(y).flatten(2) for part in (self.q, self.k, self.v))
        weights = torch.einsum("bci,bcj->bij", q, k).div(q.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))


class Decoder(nn.Module):
    """`widths`: of the levels, fine to coarse, as `up` numbers them."""

    def __init__(self, latent, widths, blocks):
        super().__init__()
        width = widths[-1]
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": Residual(width, width),
                "attn_1": Attention(width),
                "block_2": Residual(width, width),
            }
        )
        levels = []
        for n in reversed(range(len(widths))):
            level = nn.ModuleDict({"block": nn.ModuleList()})
            for _ in range(blocks + 1):
                level["block"].append(Residual(width, widths[n]))
                width = widths[n]
            if n:
                conv = nn.Conv2d(width, width, 3, padding=1)
                level["upsample"] = nn.ModuleDict({"conv": conv})
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid[name](x)
        for level in reversed(self.up):
            for block in level["block"]:
                x = block(x)
            if "upsample" in level:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = level["upsample"]["conv"](x)
        return self.conv_out(functional.silu(self.norm_out(x)))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "model.vqmodel."])
def test_decoder_of_chameleon(tmp_path, prefix):
    model = chameleon.ChameleonVQVAE(hf.ChameleonVQVAEConfig(**CONFIGS["chameleon"]))
    model.decoder = Decoder(16, (32, 64), blocks=1)
    tensors = {f"{prefix}{n}": v for n, v in shaken(model).state_dict().items()}
    tensors |= {
        "loss.weight": torch.ones(1),
        "other.decoder.up.3.weight": torch.ones(1),
    }
    config = {"model_type": "chameleon", "vq_config": CONFIGS["chameleon"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        {n: v.numpy() for n, v in tensors.items()}, tmp_path / "model.safetensors"
    )
    codec, params = codecs.load(tmp_path)
    codes = np.random.default_rng(0).integers(0, 40, (2, 5, 7))
    rows = model.quantize.embedding(torch.tensor(codes)).permute(0, 3, 1, 2)
    want = model.decoder(model.post_quant_conv(rows))
    assert want.std() > 0.1
    np.testing.assert_allclose(first(codec.pixels(params, codes)), want, atol=2e-5)
    out = codec.decode(params, codes[0])
    assert out.dtype == np.uint8
    seen = (first(out).float() * 0.0078 - 1).numpy()
    inside = np.abs(want[0].numpy()) < 0.9
    assert np.abs(seen - want[0].numpy())[inside].max() < 0.0040


# --- whole models, preprocessing, the contract ---


def whole(name):
    vq_config = CONFIGS[name]
    if name == "chameleon":
        names = {f"IMGIMG{chr(65 + n // 26)}{chr(65 + n % 26)}Z": n for n in range(40)}
        config = hf.ChameleonConfig(
            **TEXT, vq_config=vq_config, vocabulary_map={"<image>": 50, **names}
        )
        return hf.ChameleonForConditionalGeneration(config)
    if name == "janus":
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 2, "projection_dim": 16}
        vq_config = vq_config | {"projection_dim": 16, "image_token_embed_dim": 16}
        config = hf.JanusConfig(
            text_config=TEXT, vision_config=vision, vq_config=vq_config
        )
        return hf.JanusForConditionalGeneration(config)
    names = {f"<|visual token {n:06d}|>": n for n in range(40)}
    names |= {"<image>": 50, "<|extra_200|>": 51}
    config = hf.Emu3Config(text_config=TEXT, vq_config=vq_config, vocabulary_map=names)
    return hf.Emu3ForConditionalGeneration(config)


@pytest.mark.parametrize("name", MODELS)
def test_codec_within_a_model(tmp_path, name):
    model = whole(name)
    shaken(model.model.vqmodel)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    stated = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "resample": 2}}
    (tmp_path / "processor_config.json").write_text(json.dumps(stated))
    model.model.vqmodel.save_pretrained(tmp_path / "alone")
    codec, params = codecs.load(tmp_path)
    alone, expected = codecs.load(tmp_path / "alone")
    assert all(value.dtype == np.float32 for value in params.values())
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (codec.size, codec.patch) == (alone.size, alone.patch) == (40, 2)
    assert (codec.mean, codec.resample) == ((0.1, 0.2, 0.3), 2)
    if name != "emu3":
        assert (codec.height, codec.width) == (alone.height, alone.width) == (32, 32)


SIZES = [(32, 32), (50, 33), (33, 50), (20, 90), (7, 300), (200, 160)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_pictures_of_any_size_are_prepared_as_by_the_processor(tiny_of, name, size):
    codec, _ = tiny_of[name]
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = np.repeat(np.repeat(picture, 3, 0), 3, 1)
    want = PROCESSORS[name](picture, return_tensors="np")["pixel_values"][0]
    got = codec.any_size(picture) if name == "emu3" else codec.prepared(picture)
    np.testing.assert_array_equal(np.moveaxis(got, -1, 0), want)


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory):
    """name -> codec and arrays of a directory with a processor."""
    found = {}
    for name, (kind, config) in MODELS.items():
        place = tmp_path_factory.mktemp(name)
        shaken(kind(config(**CONFIGS[name]))).save_pretrained(place)
        PROCESSORS[name].save_pretrained(place)
        found[name] = codecs.load(place)
    codec, params = found["emu3"]
    found["emu3"] = dataclasses.replace(codec, height=32, width=20), params
    return found


@pytest.mark.parametrize("name", MODELS)
def test_contract_and_a_round_trip_through_a_directory(tiny_of, tmp_path, name):
    codec, params = tiny_of[name]
    picture = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    codes = codec.encode(params, picture)
    assert codes.dtype == np.int32 and codes.shape == (codec.length,)
    assert 0 <= codes.min() <= codes.max() < codec.size
    codecs.save(tmp_path, codec, params)
    again, arrays = codecs.load(tmp_path)
    assert again == codec
    jax.tree.map(np.testing.assert_array_equal, arrays, params)
    if name == "chameleon":
        return
    out = again.decode(arrays, codes)
    assert out.dtype == np.uint8 and out.shape == (codec.height, codec.width, 3)
    assert np.array_equal(out, codec.decode(params, codes.reshape(codec.grid)))


@pytest.mark.parametrize("codec", [vqgan.VQGAN(), emu3_vq.Emu3VQ()])
def test_painting_undoes_normalising(codec):
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, -1)
    shown = pictures.painted(codec, pictures.normalised(codec, every))
    assert np.array_equal(shown, every)


PICTURE = np.zeros((8, 8, 3), np.uint8)
WRONG = {
    "uint8": lambda c, p: c.encode(p, PICTURE.astype(np.float32)),
    r"uint8 \[height": lambda c, p: c.encode(p, PICTURE[..., 0]),
    "codes \\(3,\\)": lambda c, p: c.decode(p, np.zeros(3, int)),
    "0 .. 39": lambda c, p: c.decode(p, np.full(c.length, 40)),
    "lack 'encoder.conv_in.bias'": lambda c, p: c.encode(
        {n: v for n, v in p.items() if n != "encoder.conv_in.bias"}, PICTURE
    ),
    "no whole number": lambda c, p: dataclasses.replace(c, height=31),
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("name", ["janus", "emu3"])
def test_errors_say_what_is_wrong(tiny_of, name, said):
    with pytest.raises(ValueError, match=said):
        WRONG[said](*tiny_of[name])


def test_a_checkpoint_without_the_codec_is_refused(tmp_path):
    model = whole("chameleon")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"no tensor vq\.quantize.*model.vqmodel"):
        vqgan.from_hf(config, stored.get, stored, prefix="vq.")
    codec, params = vqgan.from_hf(config, stored.get, stored, prefix="model.vqmodel.")
    assert codec.length == 256 and "quant_conv.weight" in params
    with pytest.raises(ValueError, match="Give a whole checkpoint"):
        vqgan.from_hf(config, stored.get, [n for n in stored if "vq" not in n])
