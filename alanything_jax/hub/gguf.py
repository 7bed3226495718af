"""GGUF in: dequantized by the `gguf` library, renamed, rotations un-permuted.

llama.cpp stores Llama's query and key rows with the two halves of each head
interleaved; Qwen's are as in Hugging Face files. Q4 files are lossy: what comes out
equals transformers on the same dequantized weights, not the original release.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from einops import rearrange

from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.load import assemble
from alanything_jax.models import families
from alanything_jax.models.model import Model

_PERMUTED = ("llama",)
# How text is cut before merges, by the file's `tokenizer.ggml.pre`.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "smollm": ["digits"],
    "llama-bpe": [_WORDS % r"\p{N}{1,3}"],
    "qwen2": [_WORDS % r"\p{N}"],
    "gpt-2": [],
    "default": [],
}


def load_gguf(path: Path, dtype: str) -> Bundle:
    """A bundle from a .gguf file, tokenizer and chat template included.

    Raises FileNotFoundError, ValueError: no such file; truncated; unknown architecture.
    """
    from gguf.quants import dequantize

    reader, meta = _open(path)
    config = hf_config(meta, {t.name for t in reader.tensors}, path)
    cfg = families.family_of(config["model_type"]).config(config)
    model = Model(config["model_type"], cfg)
    ours = names(model)
    stored = [t for t in reader.tensors if t.name != "rope_freqs.weight"]
    found = {ours.get(tensor.name, tensor.name): tensor for tensor in stored}

    def read(name):
        value = dequantize(found[name].data, found[name].tensor_type)
        heads = {"q_proj": cfg.num_heads, "k_proj": cfg.num_kv_heads}
        for part, count in heads.items():
            if part in name and config["model_type"] in _PERMUTED:
                value = rearrange(
                    value, "(n h two) ... -> (n two h) ...", n=count, two=2
                )
        return value

    shapes = {name: tuple(int(s) for s in t.shape[::-1]) for name, t in found.items()}
    params, extra, _ = assemble(model, shapes, read, dtype, False, str(path))
    return Bundle(
        model=model,
        params=params,
        tokenizer=tokenizer(meta, path),
        hf_config=config,
        source=str(path),
        generation_config={
            key: config[key]
            for key in config
            if key in ("bos_token_id", "eos_token_id")
        },
        extra=extra,
    )


def gguf_tokenizer(path: Path) -> Any | None:
    """Only the tokenizer of a .gguf file; None where it holds none."""
    return tokenizer(_open(path)[1], path)


def _open(path):
    """The reader and the metadata of a file."""
    from gguf import GGUFReader

    if not path.exists():
        raise FileNotFoundError(f"no model at {path}.")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no GGUF file ({type(error).__name__}: {error}). "
            "Download it again."
        ) from error
    return reader, {name: field.contents() for name, field in reader.fields.items()}


def names(model: Model) -> dict[str, str]:
    """llama.cpp's tensor names -> Hugging Face's, of a model."""
    import gguf

    arches = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(arches[model.family], model.config.num_layers)
    wanted = model.tensors()
    return {known.get_name(name, (".weight", ".bias")): name for name in wanted}


def hf_config(meta: dict[str, Any], names: set[str], path: Path) -> dict[str, Any]:
    """A config.json from the file's metadata."""
    arch = meta.get("general.architecture")
    if arch not in families.FAMILIES:
        raise ValueError(
            f"{path} holds architecture {arch!r}; supported are {sorted(families.FAMILIES)}."
        )

    def value(key, default=None):
        return meta.get(f"{arch}.{key}", default)

    heads = int(value("attention.head_count"))
    width = int(value("embedding_length"))
    config = {
        "architectures": [families.FAMILIES[arch].architecture],
        "model_type": arch,
        "vocab_size": int(
            value("vocab_size", len(meta.get("tokenizer.ggml.tokens", ())))
        ),
        "hidden_size": width,
        "intermediate_size": int(value("feed_forward_length")),
        "num_hidden_layers": int(value("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(value("attention.head_count_kv", heads)),
        "head_dim": int(value("attention.key_length", width // heads)),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": float(value("rope.freq_base", 10_000.0)),
        "max_position_embeddings": int(value("context_length", 2048)),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
        "dtype": "float32",
    }
    if value("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in names:
        raise ValueError(
            f"{path} scales its rotary frequencies, which GGUF does not describe fully. "
            "Load the original safetensors release instead."
        )
    for key in ("bos", "eos", "padding"):
        token = meta.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{key.replace('padding', 'pad')}_token_id"] = int(token)
    return config


def tokenizer(meta: dict[str, Any], path: Path) -> Any:
    """transformers' fast tokenizer from the file's tokens and merges, or None."""
    if "tokenizer.ggml.tokens" not in meta:
        return None
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    if meta.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(
            f"{path} has a {meta.get('tokenizer.ggml.model')!r} tokenizer; only byte-level "
            "BPE is read from GGUF. Load the original release instead."
        )
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
    vocab = {token: n for n, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    kind = str(meta.get("tokenizer.ggml.pre", "default"))
    inner.pre_tokenizer = _splitter(kind, path)
    inner.decoder = decoders.ByteLevel()
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind in (3, 4)]
    special = {"special": True, "normalized": False}
    inner.add_special_tokens([AddedToken(token, **special) for token in control])

    def token(key):
        number = meta.get(f"tokenizer.ggml.{key}_token_id")
        return None if number is None else tokens[number]

    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
        clean_up_tokenization_spaces=False,
        name_or_path=str(path),
    )
    fast.chat_template = meta.get("tokenizer.chat_template")
    return fast


def _splitter(kind, path):
    from tokenizers import Regex, pre_tokenizers

    if kind not in _SPLITS:
        raise ValueError(
            f"{path}: pre-tokenizer {kind!r} is not known ({sorted(_SPLITS)}). Load the "
            "original release instead."
        )
    steps = [pre_tokenizers.Split(Regex(r), "isolated") for r in _SPLITS[kind]]
    if kind == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    regex = not any(rule != "digits" for rule in _SPLITS[kind])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    return pre_tokenizers.Sequence([*steps, byte_level])
