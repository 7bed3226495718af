"""Reading and writing checkpoints in Hugging Face's layout."""

from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.load import load
from alanything_jax.hub.save import save

__all__ = ["Bundle", "load", "save"]
