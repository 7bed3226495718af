"""Qwen2-VL, 2.5-VL and 3-VL against transformers on tiny random models."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from alanything_jax.hub.source import ModelSource, load_model

IMAGE, VIDEO = 90, 91
TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
VISION = dict(depth=3, num_heads=2, patch_size=4)
# name -> (class, what differs in the text, what differs in the vision config)
FAMILIES = {
    "qwen2_vl": (
        "Qwen2VL",
        {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        {"embed_dim": 16, "hidden_size": 32},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        dict(
            hidden_size=16,
            out_hidden_size=32,
            intermediate_size=24,
            window_size=16,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
        ),
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "rope_parameters": {"rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            "head_dim": 16,
        },
        dict(
            hidden_size=16,
            out_hidden_size=32,
            intermediate_size=24,
            num_position_embeddings=36,
            deepstack_visual_indexes=[2, 0],
        ),
    ),
}


def make(name, text=None, vision=None, **top):
    """A model of a family with every parameter drawn anew."""
    kind, special, tower = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(
        text_config=TEXT | special | (text or {}),
        vision_config=VISION | tower | (vision or {}),
        **dict(image_token_id=IMAGE, video_token_id=VIDEO) | top,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if path.endswith("bias"):
                value.copy_(0.3 * torch.randn_like(value))
            elif value.ndim == 1:
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                fan = value[0].numel() if "embed_tokens" not in path else 4
                value.copy_(torch.randn_like(value) / fan**0.5)
    return model.eval()


def arrays_of(name, rows, patch=4, merge=2, seconds=1.0, left=False):
    """What a processor gives of rows of parts: a number of words, or (kind, t, h, w)."""
    rng = np.random.default_rng(0)
    out, lists = {}, []
    grids = {"image": [], "video": []}
    for row in rows:
        ids = []
        for part in row:
            if isinstance(part, int):
                ids += list(rng.integers(3, 80, part))
                continue
            kind, t, h, w = part
            grids[kind].append((t, h, w))
            one = [IMAGE if kind == "image" else VIDEO] * (h * w // merge**2)
            for frame in range(t):
                time = [5, 6] if frame and name == "qwen3_vl" else []
                ids += time + one
        lists.append(ids)
    length = max(map(len, lists))
    tokens, mask = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    for r, ids in enumerate(lists):
        place = slice(length - len(ids), None) if left else slice(len(ids))
        tokens[r, place], mask[r, place] = ids, 1
    out |= {"input_ids": tokens, "attention_mask": mask}
    for kind, end in (("image", ""), ("video", "_videos")):
        if grids[kind]:
            grid = np.array(grids[kind])
            size = (int(grid.prod(1).sum()), 3 * 2 * patch**2)
            out[f"pixel_values{end}"] = rng.normal(size=size).astype(np.float32)
            out[f"{kind}_grid_thw"] = grid
    if name == "qwen2_5_vl" and grids["video"]:
        out["second_per_grid_ts"] = np.float32([seconds] * len(grids["video"]))
    out["mm_token_type_ids"] = (tokens == IMAGE) + 2 * (tokens == VIDEO)
    return out


# A picture of odd sides, two media in a row of which one is a video, a row of text.
ROWS = (
    [3, ("image", 1, 10, 6), 4],
    [2, ("video", 3, 4, 6), 3, ("image", 1, 4, 4), 1, ("video", 2, 6, 2), 2],
    [7],
)


def theirs(model, arrays):
    with torch.no_grad():
        out = model(**{n: torch.tensor(a) for n, a in arrays.items()})
    return out.logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, inputs):
    return model.logits(params, inputs)


@functools.partial(jax.jit, static_argnums=0)
def scores(model, params, inputs):
    return model.scores(params, inputs)


def ours(bundle, arrays):
    return np.asarray(
        logits(bundle.model, bundle.params, bundle.model.inputs(**arrays))
    )


def gap(bundle, model, arrays):
    difference = np.abs(ours(bundle, arrays) - theirs(model, arrays))
    return difference[arrays["attention_mask"] > 0].max()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_files_equal_transformers(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "hf")
    bundle = hub.load(tmp_path / "hf", mrope_advance="grid")
    arrays = arrays_of(name, ROWS, seconds=1.5)
    assert gap(bundle, model, arrays) <= 1e-4
    assert gap(bundle, model, arrays_of(name, ([5], [9]))) <= 1e-4

    hub.save(bundle, tmp_path / "out")
    before, after = (files.locate(tmp_path / d) for d in ("hf", "out"))
    assert before.keys() == after.keys()
    for key in before:
        old, new = files.read(*before[key]), files.read(*after[key])
        assert old.shape == new.shape and old.tobytes() == new.tobytes(), key
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    np.testing.assert_array_equal(theirs(again.eval(), arrays), theirs(model, arrays))
    reloaded = hub.load(tmp_path / "out", mrope_advance="grid")
    np.testing.assert_array_equal(ours(reloaded, arrays), ours(bundle, arrays))


CASES = {
    "tied, one head each": (
        "qwen2_vl",
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"depth": 1, "mlp_ratio": 2, "hidden_act": "gelu"},
        {},
    ),
    "sliding": (
        "qwen2_vl",
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
        {"spatial_merge_size": 1, "temporal_patch_size": 2},
        {},
    ),
    "all windows": (
        "qwen2_5_vl",
        {},
        {"fullatt_block_indexes": [], "window_size": 24, "tokens_per_second": 25},
        {"tie_word_embeddings": True},
    ),
    "no windows": (
        "qwen2_5_vl",
        {"num_attention_heads": 4, "rope_parameters": {"mrope_section": [1, 2, 1]}},
        {"fullatt_block_indexes": [0, 1, 2], "num_heads": 1},
        {},
    ),
    "biases": (
        "qwen3_vl",
        {"attention_bias": True, "head_dim": 8, "rope_parameters": {}},
        {"deepstack_visual_indexes": [1], "num_position_embeddings": 16},
        {"tie_word_embeddings": True},
    ),
    "deepstack of layers that are not there": (
        "qwen3_vl",
        {},
        {"deepstack_visual_indexes": [8, 1, 16]},
        {},
    ),
    "no deepstack": ("qwen3_vl", {}, {"deepstack_visual_indexes": []}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_config_options(case, tmp_path):
    name, text, vision, top = CASES[case]
    if "rope_parameters" in text:
        text = text | {"rope_parameters": {"rope_theta": 1e4} | text["rope_parameters"]}
    model = make(name, text, vision, **top)
    model.save_pretrained(tmp_path)
    bundle = hub.load(tmp_path, mrope_advance="grid")
    merge = vision.get("spatial_merge_size", 2)
    arrays = arrays_of(name, ROWS, merge=merge, seconds=0.7, left=True)
    assert gap(bundle, model, arrays) <= 1e-4


def test_hub_spelling(tmp_path):
    """A flat config with rope_scaling of a type mrope, and names as they are in memory."""
    name = "qwen2_vl"
    model = make(name, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"]}
    del text["rms_norm_eps"]  # transformers takes another one here than in Qwen2
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    del config["vision_config"]["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(text | config))
    tensors = safetensors.numpy.load_file(tmp_path / files.SINGLE)
    renamed = {
        n.replace("model.", "model.language_model.").replace(
            "visual.", "model.visual."
        ): x
        for n, x in tensors.items()
    }
    safetensors.numpy.save_file(renamed, tmp_path / files.SINGLE, {"format": "pt"})
    bundle = hub.load(tmp_path, mrope_advance="grid")
    assert bundle.model.config.norm_eps == 1e-5
    assert gap(bundle, model, arrays_of(name, ROWS)) <= 1e-4
    hub.save(bundle, tmp_path / "out")
    assert files.locate(tmp_path / "out").keys() == renamed.keys()
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    arrays = arrays_of(name, ROWS)
    np.testing.assert_array_equal(theirs(again.eval(), arrays), theirs(model, arrays))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if m else ())
        for m, n in enumerate(FAMILIES)
    ],
)
def test_gradients_are_finite_and_reach_every_parameter(name, tmp_path):
    make(name).save_pretrained(tmp_path)
    bundle = hub.load(tmp_path)
    inputs = bundle.model.inputs(**arrays_of(name, ROWS))

    def loss(params):
        logits = bundle.model.logits(params, inputs)
        real = (inputs.group > 0)[..., None]
        return jnp.sum(jnp.where(real, jax.nn.log_softmax(logits)[..., :5], 0))

    for path, grad in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(bundle.params)
    ):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path


@pytest.mark.parametrize(
    ("name", "advance", "temporal", "text"),
    [
        # The grid is 3 x 2 x 3 behind 2 words. Text goes on at 2 + max + 1: here the
        # width is largest, ...
        ("qwen2_vl", "max_plus_one", (2, 3, 4), 5),
        # ... here time, 2 * 1.25 positions a frame, cut: 0, 2, 5; or, as transformers
        # has it, behind the width alone.
        ("qwen2_5_vl", "max_plus_one", (2, 4, 7), 8),
        ("qwen2_5_vl", "grid", (2, 4, 7), 5),
    ],
)
def test_positions_of_a_video(name, advance, temporal, text, tmp_path):
    make(name).save_pretrained(tmp_path)
    bundle = hub.load(tmp_path, mrope_advance=advance)
    arrays = arrays_of(name, [[2, ("video", 3, 4, 6), 2], [4]], seconds=1.25)
    batch = bundle.model.inputs(**arrays)
    expected = np.array(
        [
            [0, 1, *np.repeat(temporal, 6), text, text + 1],
            [0, 1, *[2, 2, 2, 3, 3, 3] * 3, text, text + 1],
            [0, 1, *[2, 3, 4] * 6, text, text + 1],
        ]
    )
    np.testing.assert_array_equal(batch.position[0], expected)
    np.testing.assert_array_equal(batch.position[1, :, :4], [[0, 1, 2, 3]] * 3)


def test_reward_head_is_a_file_of_its_own(tmp_path):
    model = make("qwen2_5_vl")
    model.save_pretrained(tmp_path / "hf")
    bundle = load_model(ModelSource(str(tmp_path / "hf")), score_head=True)
    hub.save(bundle, tmp_path / "out")
    (score,) = safetensors.numpy.load_file(tmp_path / "out" / files.SCORE).values()
    assert score.shape == (1, 32) and np.abs(score).max() > 0
    reloaded, arrays = hub.load(tmp_path / "out"), arrays_of("qwen2_5_vl", ROWS[:1])
    inputs = bundle.model.inputs(**arrays)
    given = np.asarray(scores(bundle.model, bundle.params, inputs))
    again = scores(reloaded.model, reloaded.params, inputs)
    np.testing.assert_array_equal(again, given)
    # By transformers: the trunk's states through the head. Its language model is whole.
    whole, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        arrays = {n: torch.tensor(a) for n, a in arrays.items()}
        states = whole.eval().model(**arrays).last_hidden_state.numpy()
    np.testing.assert_allclose(given, (states @ score.T)[..., 0], atol=1e-4)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("image_grid_thw", "pixel_values and image_grid_thw together"),
        ("pixel_values_videos", "pixel_values_videos and video_grid_thw together"),
    ],
)
def test_arrays_that_belong_together(drop, message, tmp_path):
    make("qwen2_vl").save_pretrained(tmp_path)
    arrays = arrays_of("qwen2_vl", ROWS)
    del arrays[drop]
    with pytest.raises(ValueError, match=message):
        hub.load(tmp_path).model.inputs(**arrays)


def test_seconds_for_every_video(tmp_path):
    make("qwen2_5_vl").save_pretrained(tmp_path)
    arrays = arrays_of("qwen2_5_vl", ROWS)
    arrays["second_per_grid_ts"] = arrays["second_per_grid_ts"][:-1]
    with pytest.raises(
        ValueError, match="of 1 videos, and video_grid_thw of 2: give one"
    ):
        hub.load(tmp_path).model.inputs(**arrays)


def test_media_that_do_not_fit(tmp_path):
    make("qwen2_vl", vision={"hidden_act": "relu"}).save_pretrained(tmp_path / "relu")
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        hub.load(tmp_path / "relu")
    make("qwen2_vl").save_pretrained(tmp_path / "hf")
    arrays = arrays_of("qwen2_vl", ROWS)
    arrays["input_ids"][0, 3] = 7
    with pytest.raises(ValueError, match="placeholders"):
        hub.load(tmp_path / "hf").model.inputs(**arrays)
