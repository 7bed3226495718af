"""Packaging only; tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="alanything_jax",
    version="0.1.0",
    description="Align any-to-any models with human intent, on TPUs and on one CPU.",
    python_requires=">=3.11",
    packages=find_packages(include=["alanything_jax", "alanything_jax.*"]),
    install_requires=["jax","flax","optax","orbax-checkpoint","transformers>=5","tensorflow-datasets","grain","einops","numpy","tyro","rich","safetensors","gguf","huggingface_hub","jaxtyping","tensorboardX","array_record","pyarrow","tokenizers","jinja2"],
    entry_points={"console_scripts": ["alanything=alanything_jax.cli.main:main"]},
)
