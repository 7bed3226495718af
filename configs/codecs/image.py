"""A VQ tokenizer of 64 x 64 pictures: 64 codes a picture, on the playground's.

alanything train configs/codecs/image.py

Cost: 1000 steps, 35 s of CPU time on one core (70 s there beside other work). Measured on
64 held-out pictures: PSNR 35.3 dB, perplexity 35.3 of 128 codes, 97% used.
"""

from alanything_jax.models.codecs.vq import VQ
from alanything_jax.pipelines.codec import CodecRecipe


def config() -> CodecRecipe:
    """Patches of 8 x 8 pixels, 128 codes."""
    return CodecRecipe(
        name="codec_image",
        codec=VQ("image", height=64, width=64, patch=8, size=128),
        data="playground:demonstrations/2000",
        steps=1000,
        learning_rate=4e-3,
    )
