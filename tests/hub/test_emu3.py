"""Emu3 against transformers: pictures of several sizes as rows of codes."""

import numpy as np
import pytest
import torch
import transformers

from tests.hub import pictures, vq

IMAGE, ROW_END, FIRST = pictures.IMAGE, 98, 99
IDS = FIRST + np.random.default_rng(0).permutation(vq.CODES)
WORDS = {"<image>": IMAGE, "<|extra_200|>": ROW_END} | {
    f"<|visual token {code:06d}|>": int(token) for code, token in enumerate(IDS)
}


def make(**special):
    net = dict(
        codebook_size=vq.CODES,
        attn_resolutions=[1],
        hidden_size=64,
        num_attention_heads=2,
    )
    config = transformers.Emu3Config(
        text_config=transformers.Emu3TextConfig(**vq.TEXT | special),
        vq_config=vq.NET | net,
        vocabulary_map=WORDS,
        tie_word_embeddings=special.get("tie_word_embeddings", False),
    )
    return vq.redraw(config, 8)


def arrays_of(sizes=((8, 6), (4, 8), (8, 8))):
    """A row of two pictures, one of none padded on the right, one padded on the left."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 90, (3, 60)), np.ones((3, 60), np.int64)
    mask[1, -7:] = mask[2, :3] = 0
    for (row, first), (height, width) in zip(
        ((0, 2), (0, 25), (2, 6)), sizes, strict=True
    ):
        ids[row, first : first + height // 2 * (width // 2 + 1)] = IMAGE
    pixels = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    for picture, (height, width) in zip(pixels, sizes, strict=True):
        picture[:, height:] = picture[:, :, width:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": pixels,
        "image_sizes": np.array(sizes),
    }


@pytest.mark.parametrize("special", [{}, {"tie_word_embeddings": True}])
def test_logits_and_files_equal_transformers(special, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pictures,
        "text_of",
        lambda a: {n: a[n][1:2] for n in ("input_ids", "attention_mask")},
    )
    model, arrays = make(**special), arrays_of()
    bundle, expected = pictures.check(model, arrays, tmp_path)
    pixels, sizes = (
        torch.tensor(arrays.pop(n)) for n in ("pixel_values", "image_sizes")
    )
    ids = model.model.get_image_tokens(pixels, sizes).numpy()
    assert len(np.unique(ids)) > 5 and (ids == ROW_END).sum() == 4 + 2 + 4
    arrays["input_ids"][arrays["input_ids"] == IMAGE] = ids
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
