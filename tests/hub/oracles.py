"""Tiny random transformers models whose norms and biases are not at their defaults."""

import torch
import transformers

COMMON = dict(
    vocab_size=99,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
EXPERTS = dict(
    head_dim=16,
    moe_intermediate_size=40,
    num_experts=6,
    num_experts_per_tok=2,
    norm_topk_prob=True,
)
# name -> (config class, what differs)
FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-biases-tied": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": 5, "head_dim": 8}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-sliding": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3MoeConfig", EXPERTS),
    "qwen3-moe-plain-weights": (
        "Qwen3MoeConfig",
        EXPERTS | {"norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    # Every layer slides, whatever `max_window_layers` says.
    "qwen3-moe-sliding": (
        "Qwen3MoeConfig",
        EXPERTS | {"use_sliding_window": True, "sliding_window": 4},
    ),
}


def make(name, kind="ForCausalLM", seed=0, **changes):
    """A model of a family with every parameter drawn anew."""
    config_class, special = FAMILIES[name]
    config = getattr(transformers, config_class)(**COMMON | special | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, config_class.removesuffix("Config") + kind)(config)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if path.endswith("norm.weight"):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            elif path.endswith("bias"):
                value.copy_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    return model.eval()
