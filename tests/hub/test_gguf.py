"""GGUF import: a file written here equals the Hugging Face directory it was made from."""

import gguf
import numpy as np
import pytest
from einops import rearrange

from alanything_jax import hub
from tests.hub import oracles
from tests.hub.test_parity import rows, theirs

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path, model, arch="llama", tokens=True):
    """A GGUF file of a llama or qwen2 model, with llama.cpp's permutation for llama."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if tokens:
        letters = [chr(33 + n) for n in range(config.vocab_size - 2)]
        vocab = ["<|endoftext|>", *letters, "!!"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(vocab)
        writer.add_token_merges(["! !"])
        writer.add_token_types([3] + [1] * (config.vocab_size - 1))
        writer.add_eos_token_id(0)
    for name, value in model.state_dict().items():
        array = value.numpy()
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_key_value_heads,
        }
        for part, count in heads.items():
            if part in name and arch == "llama":
                array = rearrange(array, "(n two h) d -> (n h two) d", n=count, two=2)
        writer.add_tensor(rename(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rename(name):
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        stem, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[stem]}.{kind}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


@pytest.mark.parametrize("name,arch", [("llama", "llama"), ("qwen2", "qwen2")])
def test_gguf_equals_transformers(name, arch, tmp_path):
    model = oracles.make(name, tie_word_embeddings=False)
    write(tmp_path / "m.gguf", model, arch)
    bundle = hub.load(tmp_path / "m.gguf")
    arrays = rows()
    ours = np.asarray(bundle.model.logits(bundle.params, bundle.model.inputs(**arrays)))
    real = arrays["attention_mask"] > 0
    assert np.max(np.abs(ours - theirs(model, arrays))[real]) <= 1e-4
    assert bundle.tokenizer.eos_token == "<|endoftext|>"
    assert bundle.tokenizer("!!")["input_ids"] == [98]
    hub.save(bundle, tmp_path / "out")
    again = hub.load(tmp_path / "out")
    assert again.hf_config["architectures"] == [f"{name.title()}ForCausalLM"]


def test_truncated_gguf_names_the_file(tmp_path):
    write(tmp_path / "m.gguf", oracles.make("llama"), tokens=False)
    data = (tmp_path / "m.gguf").read_bytes()
    for share in (0.001, 0.3, 0.7):
        (tmp_path / "m.gguf").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match="m.gguf is truncated or no GGUF"):
            hub.load(tmp_path / "m.gguf")


def test_gguf_without_tokenizer(tmp_path):
    write(tmp_path / "m.gguf", oracles.make("llama"), tokens=False)
    assert hub.load(tmp_path / "m.gguf").tokenizer is None
