"""An audio codec of frames of 50 ms, on the playground's tunes.

alanything train configs/codecs/audio.py

Cost: 1000 steps, 54 s of CPU time on one core (68 s there beside other work). Measured on
64 held-out tunes: SNR 27.8 dB, perplexity 87.1 of 256 codes, 75% used.
"""

from alanything_jax.models.codecs.audio_vq import AudioVQ
from alanything_jax.pipelines.codec import CodecRecipe


def config() -> CodecRecipe:
    """400 samples of 8 kHz a frame, two codes of 256."""
    return CodecRecipe(
        name="codec_audio",
        codec=AudioVQ(rate=8000, hop=400, frames=48, codebooks=2, size=256),
        data="playground:demonstrations/2000",
        steps=1000,
    )
