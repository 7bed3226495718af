"""Chameleon against transformers: pictures as codes, norms behind branches, image logits."""

import numpy as np
import pytest
import torch
import transformers

from tests.hub import pictures, vq

FIRST, IMAGE, SIDE = 9, pictures.IMAGE, 8
# Which id stands for which code: a permutation of 9 .. 40.
IDS = FIRST + np.random.default_rng(0).permutation(vq.CODES)


def word(code):
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(code)) + "Z"


WORDS = {"<racm3:break>": 3, "<eoss>": 4, "<image>": IMAGE} | {
    word(code): int(token) for code, token in enumerate(IDS)
}


def make(**special):
    net = dict(
        resolution=SIDE, num_embeddings=vq.CODES, embed_dim=8, latent_channels=16
    )
    config = transformers.ChameleonConfig(
        **vq.TEXT | special, vq_config=vq.NET | net, vocabulary_map=WORDS
    )
    return vq.redraw(config, SIDE)


def theirs(model, arrays):
    """Logits before those of codes are masked."""
    with torch.no_grad():
        given = {n: torch.tensor(a) for n, a in arrays.items()}
        return model.lm_head(model.model(**given).last_hidden_state).numpy()


@pytest.fixture
def unmasked(monkeypatch):
    monkeypatch.setattr(pictures, "theirs", theirs)


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"swin_norm": True, "attention_bias": True, "num_key_value_heads": 4},
        {"tie_word_embeddings": True, "mlp_bias": True},
    ],
    ids=["plain", "swin", "tied"],
)
def test_logits_and_files_equal_transformers(special, tmp_path, unmasked):
    model, arrays = make(**special), pictures.rows(SIDE, 16, 45, IMAGE)
    bundle, expected = pictures.check(model, arrays, tmp_path)
    masked = model(**{n: torch.tensor(a) for n, a in arrays.items()}).logits.detach()
    text = np.setdiff1d(np.arange(131), IDS)
    np.testing.assert_array_equal(masked[..., text], expected[..., text])
    assert (masked[..., IDS] == torch.finfo(torch.float32).min).all()
    # Codes given as ids are the pictures.
    ids = model.get_image_tokens(torch.tensor(arrays.pop("pixel_values")))
    assert len(np.unique(ids)) > 5
    arrays["input_ids"][arrays["input_ids"] == IMAGE] = ids.reshape(-1).numpy()
    assert pictures.gap(bundle, arrays, expected) <= 1e-4
