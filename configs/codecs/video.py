"""A VQ tokenizer of clips of three 48 x 48 frames, on the playground's.

alanything train configs/codecs/video.py
alanything train configs/codecs/video.py --codec.temporal --run-dir runs/temporal

Cost: 800 steps, 39 s of CPU time on one core (46 s there beside other work). Measured on
64 held-out clips: PSNR 32.6 dB, perplexity 33.8 of 128 codes, 98% used. With two frames a
code (72 codes a clip): 23.6 dB, perplexity 25.7, 100% used.
"""

from alanything_jax.models.codecs.vq import VQ
from alanything_jax.pipelines.codec import CodecRecipe


def config() -> CodecRecipe:
    """Patches of 8 x 8 pixels in a frame, 128 codes, 108 to a clip."""
    return CodecRecipe(
        name="codec_video",
        codec=VQ("video", height=48, width=48, frames=3, patch=8, size=128),
        data="playground:demonstrations/2000",
        steps=800,
        learning_rate=4e-3,
    )
