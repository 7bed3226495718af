"""Tiny models with a VQ codec of pictures, drawn anew."""

import torch
import transformers
from tokenizers import processors

from alanything_jax.data.byte_tokenizer import CHATML, byte_tokenizer
from tests.hub import pictures

NET = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
CODES = 32
TEXT = dict(
    vocab_size=131,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
)


@torch.no_grad()
def redraw(config, side, seed=0):
    """`pictures.redraw`, with a codec whose codes differ: its table is latents of noise."""
    model, seen = pictures.redraw(config, seed), []
    codec, noise = model.model.vqmodel, torch.randn(8, 3, side, side)
    for name, value in codec.named_buffers():
        if "running" in name:
            value.add_(0.3 * torch.rand_like(value))
    codec.quantize.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sizes = [[[side, side]] * 8] if config.model_type == "emu3" else []
    codec.encode(noise, *sizes)
    codec.quantize._forward_pre_hooks.clear()
    latents = seen[0].movedim(-3, -1).flatten(0, -2)
    codec.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:CODES]])
    return model


def tokenizer(words, template=CHATML, begins=False, **special):
    """Bytes, then `words`; `special` names tokens among them, such as boi_token.

    One that `begins` puts its bos_token before a text, as Llama's.
    """
    plain = byte_tokenizer()
    plain.add_tokens(words, special_tokens=True)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    own = {n: w for n, w in special.items() if n != "bos_token"}
    named |= {n: w for n, w in special.items() if n == "bos_token"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer, extra_special_tokens=own, **named
    )
    made.chat_template = template
    if begins:
        bos = (made.bos_token, made.bos_token_id)
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    return made
