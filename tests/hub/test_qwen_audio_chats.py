"""Chats with sounds, pictures and clips: tokens and logits as transformers' processors
give them, for Qwen2-Audio and Qwen2.5-Omni."""

import json

import jax
import numpy as np
import pytest
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from alanything_jax import hub
from alanything_jax.data import packing, soft
from alanything_jax.data.byte_tokenizer import byte_tokenizer
from alanything_jax.data.encode import EncodedGroup
from alanything_jax.data.template import TemplateError, render_prompt
from alanything_jax.schema import Message, Part
from tests.hub import test_qwen_audio as tiny

KINDS = {"audio": "AUDIO", "image": "IMAGE", "video": "VIDEO"}
MARKS = [f"<|{mark}|>" for mark in KINDS.values()]
SIDES = [f"<|{name}_{end}|>" for name in ("audio", "vision") for end in ("bos", "eos")]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}<|vision_bos|><|{{ part.type | upper }}|><|vision_eos|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RNG = np.random.default_rng(0)
# 0.31 s; 1.5 s, of which Qwen2-Audio's extractor here keeps 1 s.
WAVES = [(0.1 * RNG.standard_normal(n)).astype(np.float32) for n in (4960, 24_000)]
SOUNDS = [Part("audio", data=wave, meta={"rate": 16_000}) for wave in WAVES]
PICTURE = RNG.integers(0, 256, (60, 130, 3), dtype=np.uint8)
CLIP = RNG.integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)


def said(text):
    return Part("text", text=text)


def tokenizer():
    fast = byte_tokenizer(TEMPLATE)
    fast.add_tokens([*MARKS, *SIDES], special_tokens=True)
    return fast


def ids(*names):
    return tokenizer().convert_tokens_to_ids(list(names))


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory):
    """A model's directory as transformers writes it, and its processor."""
    folder = tmp_path_factory.mktemp("qwen2_audio")
    sound = {"max_source_positions": 50}
    config = tiny.config_of("qwen2_audio", {"vocab_size": 288}, sound)
    (config.audio_token_index,) = ids("<|AUDIO|>")
    tiny.redrawn(tiny.CLASSES["qwen2_audio"](config)).save_pretrained(folder)
    extract = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = transformers.Qwen2AudioProcessor(extract, tokenizer(), TEMPLATE)
    processor.save_pretrained(folder)
    return folder, processor


def compared(bundle, tokens, placement, arrays):
    """Logits of the rendered chat in a packed row, and of the processor's arrays."""
    group = EncodedGroup("chat", tokens, (), prompt_soft=placement)
    plans = [soft.plan_of(encoder, 0) for encoder in bundle.model.config.encoders]
    row = packing.one_a_row([group], 1, len(tokens) + 3, plans)
    logits = jax.jit(bundle.model.logits)
    packed = logits(bundle.params, row)[:, :-3]
    return packed, logits(bundle.params, bundle.model.inputs(**arrays))


def test_qwen2_audio(qwen2_audio):
    folder, processor = qwen2_audio
    bundle = hub.load(folder)
    first, second = SOUNDS
    chat = (
        Message("system", (said("hear"),)),
        Message("user", (first, said("one, "), second, said("two?"))),
    )
    tokens, placement = render_prompt(bundle.tokenizer, chat, bundle.coder)
    typed = [
        {"role": m.role, "content": [{"type": p.kind, "text": p.text} for p in m.parts]}
        for m in chat
    ]
    text = processor.apply_chat_template(typed, add_generation_prompt=True)
    arrays = processor(
        text=text, audio=WAVES, sampling_rate=16_000, return_tensors="np"
    )
    np.testing.assert_array_equal(tokens, arrays["input_ids"][0])
    packed, expected = compared(bundle, tokens, placement, arrays)
    np.testing.assert_allclose(packed, expected, atol=1e-4)
    changed = arrays | {"input_features": 1.1 * arrays["input_features"]}
    assert np.abs(compared(bundle, tokens, placement, changed)[1] - packed).max() > 1e-2


def test_qwen2_audio_takes_sound_alone(qwen2_audio):
    bundle = hub.load(qwen2_audio[0])
    with pytest.raises(TemplateError, match="holds image, .* takes text, audio only"):
        chat = (Message("user", (Part("image", data=PICTURE),)),)
        render_prompt(bundle.tokenizer, chat, bundle.coder)


def test_omni_hears_and_sees(tmp_path):
    """All kinds in one prompt, with the files of a processor of before transformers 5."""
    audio, image, video = ids(*MARKS)
    vision = dict(patch_size=28, window_size=112)
    config = tiny.config_of("omni", {"vocab_size": 288}, {"n_window": 20}, vision)
    config.audio_token_index, config.image_token_index = audio, image
    config.video_token_index = video
    tiny.redrawn(tiny.CLASSES["omni"](config)).save_pretrained(tmp_path)
    fast = tokenizer()
    fast.save_pretrained(tmp_path)
    look = Qwen2VLImageProcessorPil(patch_size=28, min_pixels=56 * 56)
    extract = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    known = look.to_dict() | extract.to_dict()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(known))
    bundle = hub.load(tmp_path, mrope_advance="grid")
    clip = Part("video", data=CLIP, meta={"fps": 4.0})
    first, second = SOUNDS
    parts = (said("a "), first, Part("image", data=PICTURE), clip, said(" b"), second)
    chat = (Message("user", parts),)
    tokens, placement = render_prompt(fast, chat, bundle.coder)

    seen = look(PICTURE, return_tensors="np")
    heard = extract(
        WAVES, sampling_rate=16_000, return_attention_mask=True, return_tensors="np"
    )
    # 336 is the least side whose square is no smaller than 128 * 28 * 28.
    filmed = bundle.coder.soft["video"].medium(CLIP, {"fps": 4.0}).arrays["patches"]
    grid = np.array([[2, 12, 12]])
    counts = [(n // 160 + 1) // 4 for n in (4960, 24_000)]
    sound = [f"<|audio_bos|>{'<|AUDIO|>' * n}<|audio_eos|>" for n in counts]
    shown = [
        f"<|vision_bos|>{f'<|{mark}|>' * n}<|vision_eos|>"
        for mark, n in (("IMAGE", seen["image_grid_thw"].prod() // 4), ("VIDEO", 72))
    ]
    text = "".join(["<|im_start|>user\na ", sound[0], *shown, " b", sound[1]])
    text += "<|im_end|>\n<|im_start|>assistant\n"
    expected = fast(text, add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(tokens, expected)
    arrays = {
        "input_ids": np.array([expected]),
        "input_features": heard["input_features"],
        "feature_attention_mask": heard["attention_mask"],
        **{n: np.asarray(seen[n]) for n in ("pixel_values", "image_grid_thw")},
        "pixel_values_videos": filmed,
        "video_grid_thw": grid,
        "video_second_per_grid": [0.5],
    }
    packed, logits = compared(bundle, tokens, placement, arrays)
    np.testing.assert_allclose(packed, logits, atol=1e-4)
