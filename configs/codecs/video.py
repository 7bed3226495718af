"""A VQ tokenizer of clips of three 48 x 48 frames, on the playground's.

alanything train configs/codecs/video.py
alanything train configs/codecs/video.py --codec.temporal True --run-dir runs/temporal
"""

from alanything_jax.models.codecs.vq import VQ
from alanything_jax.training.codec import CodecRecipe


def config() -> CodecRecipe:
    """Patches of 8 x 8 pixels in a frame, 128 codes, 108 to a clip."""
    return CodecRecipe(
        name="codec_video",
        codec=VQ("video", height=48, width=48, frames=3, patch=8, size=128),
        data="playground:demonstrations/2000",
        steps=500,
    )
