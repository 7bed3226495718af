"""Janus against transformers: a tower that reads; what draws passes through."""

import pytest
import transformers

from tests.hub import pictures, vq

SIDE = 12


def make(text=None, tie=False, **vision):
    tower = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
        mlp_ratio=2.5,
        projection_dim=32,
        num_image_tokens=9,
    )
    net = dict(
        num_embeddings=vq.CODES,
        embed_dim=8,
        latent_channels=16,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            **vq.TEXT | {"bos_token_id": 1} | (text or {})
        ),
        vision_config=transformers.JanusVisionConfig(**tower | vision),
        vq_config=transformers.JanusVQVAEConfig(**vq.NET | net),
        image_token_id=pictures.IMAGE,
        tie_word_embeddings=tie,
    )
    return vq.redraw(config, SIDE)


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"tie": True, "attention_bias": False, "depth": 3},
        {
            "text": {"head_dim": 16, "attention_bias": True},
            "hidden_act": "gelu_pytorch_tanh",
        },
    ],
    ids=["plain", "tied", "options"],
)
def test_logits_and_files_equal_transformers(special, tmp_path):
    arrays = pictures.rows(SIDE, 9, 30)
    bundle, expected = pictures.check(make(**special), arrays, tmp_path)
    arrays["pixel_values"] = arrays["pixel_values"][::-1]
    assert pictures.gap(bundle, arrays, expected) > 1e-2
