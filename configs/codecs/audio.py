"""An audio codec of frames of 50 ms, on the playground's tunes.

alanything train configs/codecs/audio.py
"""

from alanything_jax.models.codecs.audio_vq import AudioVQ
from alanything_jax.training.codec import CodecRecipe


def config() -> CodecRecipe:
    """400 samples of 8 kHz a frame, two codes of 256."""
    return CodecRecipe(
        name="codec_audio",
        codec=AudioVQ(rate=8000, hop=400, frames=48, codebooks=2, size=256),
        data="playground:demonstrations/2000",
        steps=600,
    )
