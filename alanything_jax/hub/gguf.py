"""GGUF in: dequantized by the `gguf` library, renamed, rotations un-permuted.

llama.cpp stores Llama's query and key rows with the two halves of each head
interleaved; Qwen's are as in Hugging Face files. Q4 files are lossy: what comes out
equals transformers on the same dequantized weights, not the original release.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from einops import rearrange

from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.load import assemble
from alanything_jax.models import families
from alanything_jax.models.model import Model

_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    **{
        f"attn_{n}.{kind}": f"self_attn.{n}_proj.{kind}"
        for n in "qkv"
        for kind in ("weight", "bias")
    },
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PERMUTED = ("llama",)
# How text is cut before merges, by the file's `tokenizer.ggml.pre`.
_SPLITS = {
    "smollm": ["digits"],
    "llama-bpe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-2": [],
    "default": [],
}


def load_gguf(path: Path, dtype: str) -> Bundle:
    """A bundle from a .gguf file, tokenizer and chat template included.

    Raises:
      FileNotFoundError, ValueError: no such file; truncated; unknown architecture.
    """
    from gguf.quants import dequantize

    reader, meta = _open(path)
    config = hf_config(meta, {t.name for t in reader.tensors}, path)
    cfg = families.config_from_hf(config)
    found = {}
    for tensor in reader.tensors:
        if tensor.name != "rope_freqs.weight":
            found[rename(tensor.name)] = tensor

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
    params, extra = assemble(cfg, shapes, read, dtype, False, str(path))
    return Bundle(
        model=Model(config["model_type"], cfg),
        params=params,
        tokenizer=tokenizer(meta, path),
        hf_config=config,
        source=str(path),
        generation_config={
            key: config[key]
            for key in ("bos_token_id", "eos_token_id")
            if key in config
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


def rename(name: str) -> str:
    """llama.cpp's tensor name -> Hugging Face's."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}"
    return _TOP.get(name, name)


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
        "architectures": [f"{families.FAMILIES[arch].ARCHITECTURE}ForCausalLM"],
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
    inner.pre_tokenizer = _splitter(
        str(meta.get("tokenizer.ggml.pre", "default")), path
    )
    inner.decoder = decoders.ByteLevel()
    control = [
        t
        for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
        if kind in (3, 4)
    ]
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in control]
    )

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
    steps = [
        pre_tokenizers.Digits(individual_digits=True)
        if rule == "digits"
        else pre_tokenizers.Split(Regex(rule), "isolated")
        for rule in _SPLITS[kind]
    ]
    regex = not any(rule != "digits" for rule in _SPLITS[kind])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    return pre_tokenizers.Sequence([*steps, byte_level])
