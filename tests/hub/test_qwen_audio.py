"""Qwen2-Audio and Qwen2.5-Omni's thinker against transformers on tiny random models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from tests.hub.pictures import respell, theirs

# Ids of placeholders, and of what opens and closes a medium.
AUDIO, IMAGE, VIDEO = 90, 91, 92
OPEN = {"audio": 93, "image": 95, "video": 95}
CLOSE = {"audio": 94, "image": 96, "video": 96}
PLACEHOLDERS = {"audio": AUDIO, "image": IMAGE, "video": VIDEO}
TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=512,
    pad_token_id=0,
)
ROPE = {
    "qwen2_audio": {"rope_theta": 1e4},
    "omni": {"rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
SOUND = dict(num_mel_bins=8, encoder_layers=2, d_model=16)
SOUND |= dict(encoder_attention_heads=2, encoder_ffn_dim=24)
VISION = dict(
    depth=2,
    hidden_size=16,
    out_hidden_size=32,
    intermediate_size=24,
    num_heads=2,
    patch_size=4,
    window_size=16,
    fullatt_block_indexes=[1],
)
CLASSES = {
    "qwen2_audio": transformers.Qwen2AudioForConditionalGeneration,
    "omni": transformers.Qwen2_5OmniThinkerForConditionalGeneration,
}


def config_of(name, text=None, sound=None, vision=None, **top):
    text = {"rope_parameters": ROPE[name], **TEXT, **(text or {})}
    if name == "qwen2_audio":
        sound = SOUND | {"max_source_positions": 20} | (sound or {})
        return transformers.Qwen2AudioConfig(
            text_config=text, audio_config=sound, audio_token_index=AUDIO, **top
        )
    return transformers.Qwen2_5OmniThinkerConfig(
        text_config=text,
        audio_config=SOUND | {"n_window": 4, "output_dim": 32} | (sound or {}),
        vision_config=VISION | (vision or {}),
        audio_token_index=AUDIO,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_start_token_id=OPEN["audio"],
        audio_end_token_id=CLOSE["audio"],
        vision_start_token_id=OPEN["image"],
        vision_end_token_id=CLOSE["image"],
        **top,
    )


def redrawn(model):
    """Every parameter drawn anew, norms and biases off their defaults."""
    torch.manual_seed(0)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if path.endswith("bias"):
                value.copy_(0.3 * torch.randn_like(value))
            elif value.ndim == 1:
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                fan = value[0].numel() if "embed" not in path else 4
                value.copy_(torch.randn_like(value) / fan**0.5)
    return model.eval()


def make(name, *args, **top):
    return redrawn(CLASSES[name](config_of(name, *args, **top)))


def arrays_of(rows, frames=None, bins=8, seconds=1.0, left=False):
    """What a processor gives of rows of parts: a number of words, ("audio", mel frames),
    or ("image" or "video", t, h, w). `frames`: of every sound, with its padding."""
    rng = np.random.default_rng(0)
    found, lists = {kind: [] for kind in PLACEHOLDERS}, []
    for row in rows:
        ids = []
        for part in row:
            if isinstance(part, int):
                ids += list(rng.integers(3, 80, part))
                continue
            kind, *size = part
            found[kind].append(size)
            if kind == "audio":
                count = ((size[0] - 1) // 2 + 1 - 2) // 2 + 1
            else:
                count = int(np.prod(size)) // 4
            ids += [OPEN[kind], *[PLACEHOLDERS[kind]] * count, CLOSE[kind]]
        lists.append(ids)
    length = max(map(len, lists))
    tokens, mask = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    for r, ids in enumerate(lists):
        place = slice(length - len(ids), None) if left else slice(len(ids))
        tokens[r, place], mask[r, place] = ids, 1
    out = {"input_ids": tokens, "attention_mask": mask}
    if found["audio"]:
        sizes = np.array(found["audio"])
        frames = frames or int(sizes.max()) + 3
        # What lies behind a sound's end is noise: Qwen2-Audio hears some of it.
        features = rng.normal(size=(len(sizes), bins, frames)).astype(np.float32)
        out["input_features"] = features
        out["feature_attention_mask"] = (np.arange(frames) < sizes).astype(np.int64)
    for kind, end in (("image", ""), ("video", "_videos")):
        if found[kind]:
            grid = np.array(found[kind])
            size = (int(grid.prod(1).sum()), 3 * 2 * 4**2)
            out[f"pixel_values{end}"] = rng.normal(size=size).astype(np.float32)
            out[f"{kind}_grid_thw"] = grid
    if found["video"]:
        out["video_second_per_grid"] = np.float32([seconds] * len(found["video"]))
    return out


# Sounds of unequal length, of which one is whole, one gives a single output, and, in
# Omni, one has a single frame in its last chunk; a row of text.
ROWS = {
    "qwen2_audio": (
        [3, ("audio", 27), 4],
        [("audio", 40), 2, ("audio", 3), ("audio", 10), 1],
        [6],
    ),
    "omni": (
        [3, ("audio", 21), 2, ("image", 1, 10, 6), 4],
        [("video", 3, 4, 6), 2, ("audio", 17), 1, ("audio", 8), ("image", 1, 4, 4), 2],
        [6],
        [("audio", 3), 2],
    ),
}
FRAMES = {"qwen2_audio": 40, "omni": None}


def ours(bundle, arrays):
    inputs = bundle.model.inputs(**arrays)
    return np.asarray(jax.jit(bundle.model.logits)(bundle.params, inputs))


def gap(bundle, model, arrays):
    difference = np.abs(ours(bundle, arrays) - theirs(model, arrays))
    return difference[arrays["attention_mask"] > 0].max()


def reloaded(name, folder):
    model, info = CLASSES[name].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", CLASSES)
def test_logits_and_files_equal_transformers(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf")
    arrays = arrays_of(ROWS[name], FRAMES[name])
    assert gap(bundle, model, arrays) <= 1e-5
    assert gap(bundle, model, arrays_of(([5], [9]))) <= 1e-5

    hub.save(bundle, tmp_path / "out")
    before, after = (files.locate(tmp_path / d) for d in ("hf", "out"))
    assert before.keys() == after.keys()
    for key in before:
        old, new = files.read(*before[key]), files.read(*after[key])
        assert old.shape == new.shape and old.tobytes() == new.tobytes(), key
    again = reloaded(name, tmp_path / "out")
    np.testing.assert_array_equal(theirs(again, arrays), theirs(model, arrays))
    same = hub.load(tmp_path / "out")
    np.testing.assert_array_equal(ours(same, arrays), ours(bundle, arrays))


# name, then changes to text, sound and vision, and at the top.
CASES = {
    "heads, head width, bins": (
        "qwen2_audio",
        {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
        dict(encoder_layers=1, encoder_attention_heads=4, num_mel_bins=5),
        None,
        {},
    ),
    "sliding, another activation": (
        "qwen2_audio",
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
        dict(activation_function="gelu_pytorch_tanh", max_source_positions=22),
        None,
        {},
    ),
    "tied, no windows": (
        "omni",
        {
            "num_attention_heads": 4,
            "rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 2, 1]},
        },
        {"n_window": 2, "encoder_attention_heads": 1},
        {"fullatt_block_indexes": [0, 1], "num_heads": 1},
        {"tie_word_embeddings": True, "position_id_per_seconds": 10},
    ),
    "sliding, all windows": (
        "omni",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        {"n_window": 30, "encoder_layers": 3},
        {"fullatt_block_indexes": [], "window_size": 24},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_config_options(case, tmp_path):
    name, text, sound, vision, top = CASES[case]
    model = make(name, text, sound, vision, **top)
    model.save_pretrained(tmp_path)
    # In this family "grid" is transformers' rule, too, and the same.
    bundle = hub.load(tmp_path, mrope_advance="grid")
    frames = 2 * sound.get("max_source_positions", 20) if name != "omni" else None
    bins = sound.get("num_mel_bins", 8)
    arrays = arrays_of(ROWS[name], frames, bins, seconds=0.7, left=True)
    assert gap(bundle, model, arrays) <= 1e-5


def test_a_full_checkpoint_keeps_what_speaks(tmp_path):
    """Of Qwen2_5OmniForConditionalGeneration the thinker alone is read."""
    talker = {**TEXT, "vocab_size": 60, "embedding_size": 32, "head_dim": 16}
    dit = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    dit |= dict(block_size=4, enc_channels=[8, 8, 8, 8, 24], enc_attention_channels=4)
    dit |= dict(enc_res2net_scale=2, enc_se_channels=4)
    vocoder = dict(
        upsample_initial_channel=64,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        upsample_rates=[2],
        upsample_kernel_sizes=[4],
    )
    kind = transformers.Qwen2_5OmniForConditionalGeneration
    config = transformers.Qwen2_5OmniConfig(
        thinker_config=config_of("omni").to_dict(),
        talker_config=talker | {"rope_parameters": ROPE["omni"]},
        token2wav_config={"dit_config": dit, "bigvgan_config": vocoder},
    )
    model = redrawn(kind(config))
    model.save_pretrained(tmp_path / "hf")
    torch.save({}, tmp_path / "hf" / "spk_dict.pt")
    bundle = hub.load(tmp_path / "hf")
    arrays = arrays_of(ROWS["omni"])
    assert gap(bundle, model.thinker, arrays) <= 1e-5

    params = jax.tree.map(lambda x: x + 1e-3, bundle.params)
    hub.save(dataclasses.replace(bundle, params=params), tmp_path / "out")
    before, after = (files.locate(tmp_path / d) for d in ("hf", "out"))
    assert before.keys() == after.keys()
    for key in before:
        old, new = files.read(*before[key]), files.read(*after[key])
        ours = key.startswith("thinker.") and "bos_eos" not in key
        assert (old.tobytes() == new.tobytes()) != ours, key
    again = kind.from_pretrained(tmp_path / "out").eval()
    assert gap(hub.load(tmp_path / "out"), again.thinker, arrays) <= 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_other_spellings(name, tmp_path):
    """A config of before transformers 5, and names as they are in memory."""
    model = make(name)
    model.save_pretrained(tmp_path / "hf")

    def config(hf):
        text = hf["text_config"]
        rope = text.pop("rope_parameters")
        for key in ("layer_types", "sliding_window", "tie_word_embeddings"):
            del text[key]
        text["rope_theta"] = rope["rope_theta"]
        if name == "omni":
            sections = rope["mrope_section"]
            text["rope_scaling"] = {"type": "default", "mrope_section": sections}
            del hf["vision_config"]["rope_parameters"], hf["tie_word_embeddings"]
        return hf

    memory = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "audio_tower.": "model.audio_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "visual.": "model.visual.",
        "model.": "model.language_model.",
        "": "",
    }

    def rename(tensor):
        old = next(n for n in memory if tensor.startswith(n))
        return memory[old] + tensor.removeprefix(old)

    respell(tmp_path / "hf", config, rename)
    bundle = hub.load(tmp_path / "hf")
    arrays = arrays_of(ROWS[name], FRAMES[name])
    assert gap(bundle, model, arrays) <= 1e-5
    hub.save(bundle, tmp_path / "out")
    names = [files.locate(tmp_path / d).keys() for d in ("hf", "out")]
    assert names[0] == names[1] and "lm_head.weight" in names[0]
    again = reloaded(name, tmp_path / "out")
    np.testing.assert_array_equal(theirs(again, arrays), theirs(model, arrays))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if m else ())
        for m, n in enumerate(CLASSES)
    ],
)
def test_gradients_are_finite_and_reach_every_parameter(name, tmp_path):
    make(name).save_pretrained(tmp_path)
    bundle = hub.load(tmp_path)
    inputs = bundle.model.inputs(**arrays_of(ROWS[name], FRAMES[name]))

    def loss(params):
        logits = bundle.model.logits(params, inputs)
        real = (inputs.group > 0)[..., None]
        return jnp.sum(jnp.where(real, jax.nn.log_softmax(logits)[..., :5], 0))

    for path, grad in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(bundle.params)
    ):
        fixed = "position" in str(path)  # Whisper's table is never trained
        assert np.isfinite(grad).all() and (np.abs(grad).max() > 0) != fixed, path


# 2 / 25 and 1 / 25: single precision decides whether a frame's time is whole.
@pytest.mark.parametrize("seconds", [1.0, 2 / 25, 1 / 25, 1 / 3])
def test_positions_equal_transformers(seconds, tmp_path):
    model = make("omni")
    model.save_pretrained(tmp_path)
    rows = (
        [2, ("video", 24, 4, 6), 3, ("audio", 21), ("image", 1, 4, 10), 1],
        [1, ("audio", 9), 2, ("video", 2, 8, 4), 1],
    )
    arrays = arrays_of(rows, seconds=seconds, left=True)
    batch = hub.load(tmp_path).model.inputs(**arrays)
    given = {n: torch.tensor(a) for n, a in arrays.items()}
    expected, _ = model.model.get_rope_index(
        given["input_ids"],
        given["image_grid_thw"],
        given["video_grid_thw"],
        given["attention_mask"],
        audio_seqlens=given["feature_attention_mask"].sum(1),
        second_per_grids=given["video_second_per_grid"],
    )
    np.testing.assert_array_equal(batch.position, np.moveaxis(expected.numpy(), 0, 1))


def without(arrays, *names):
    return {n: a for n, a in arrays.items() if n not in names}


def test_arrays_that_do_not_fit(tmp_path):
    sound = arrays_of(ROWS["qwen2_audio"], 40)
    make("qwen2_audio").save_pretrained(tmp_path / "audio")
    inputs = hub.load(tmp_path / "audio").model.inputs
    with pytest.raises(ValueError, match="feature_attention_mask together, or neither"):
        inputs(**without(sound, "feature_attention_mask"))
    with pytest.raises(ValueError, match=r"this model takes \[N, 8, 40\]"):
        inputs(**sound | {"input_features": sound["input_features"][..., :39]})
    with pytest.raises(ValueError, match="do not fit its media"):
        inputs(
            **sound
            | {"input_ids": sound["input_ids"][:, ::2]}
            | {"attention_mask": sound["attention_mask"][:, ::2]}
        )
    with pytest.raises(ValueError, match=r"Drop \['pixel_values'\]"):
        inputs(**sound, pixel_values=np.zeros(1))
    make("omni").save_pretrained(tmp_path / "omni")
    inputs, arrays = hub.load(tmp_path / "omni").model.inputs, arrays_of(ROWS["omni"])
    inputs(**arrays, use_audio_in_video=False)
    with pytest.raises(ValueError, match="sound between its frames is not supported"):
        inputs(**arrays, use_audio_in_video=True)
    with pytest.raises(ValueError, match="without video_second_per_grid"):
        inputs(**without(arrays, "video_second_per_grid"))
    config = json.loads((tmp_path / "omni" / "config.json").read_text())
    config["audio_config"]["n_window"] = 5
    (tmp_path / "omni" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="make audio_config.n_window even"):
        hub.load(tmp_path / "omni")
