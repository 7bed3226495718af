"""What both sides of `dpo_vs_trl.py` read: a 5M-parameter Llama, and two sets of pairs.

`chat`: the real preference pairs of LLaMA-Factory 0.9.5, those within 1,024 tokens;
`few`: eight of them, for checking that both sides compute the same.
`long`: real text of the same source cut into prompts of 600 tokens and answers of 20 to
120, the shape an image prompt has.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from alanything_jax.data import fetch, groups

SOURCE = "pypi:llamafactory==0.9.5/data/dpo_en_demo.json"
SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
MAX_TOKENS = 1024
CONFIG = dict(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=1,
)


def build(folder: Path, num_long: int) -> None:
    """`model/`, `chat.jsonl` and `long.jsonl` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = [e for _, e in groups.examples(str(fetch.resolve(SOURCE, SHA256)))]
    rows = [
        {
            "prompt": f"Human: {e.prompt[-1].text.strip()}\n\nAssistant:",
            "chosen": " " + e.responses[0].messages[0].text.strip(),
            "rejected": " " + e.responses[1].messages[0].text.strip(),
        }
        for e in examples
    ]
    tokenizer = _model(folder / "model", [t for row in rows for t in row.values()])

    def size(text):
        return len(tokenizer(text)["input_ids"])

    chat = [row for row in rows if sum(map(size, row.values())) + 2 <= MAX_TOKENS]
    write(folder / "chat.jsonl", chat)
    write(folder / "few.jsonl", chat[:8])
    write(folder / "long.jsonl", _long(rows, tokenizer, num_long))


def _model(folder, texts):
    """A BPE of 8,192 tokens learnt on the texts, and random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return save_model(folder, tokenizer, CONFIG)


def save_model(folder, tokenizer, config, dtype="float32"):
    """Random weights of a Llama, and its tokenizer, as both sides read them."""
    import torch
    import transformers

    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast


def _long(rows, tokenizer, count):
    """Stretches of real text, cut at tokens: 600 as prompt, 20 to 120 as each answer."""
    rng = np.random.default_rng(0)
    ids = tokenizer(" ".join(row["chosen"] + row["rejected"] for row in rows))
    ids, out = np.array(ids["input_ids"]), []
    starts = [n for n in range(len(ids)) if tokenizer.decode([int(ids[n])])[:1] == " "]
    starts = np.array(starts)

    def stretch(size):
        first = rng.choice(starts[starts < len(ids) - size])
        return tokenizer.decode(ids[first : first + size].tolist())

    for _ in range(count):
        chosen, rejected = (stretch(int(rng.integers(20, 121))) for _ in range(2))
        prompt = stretch(600).rstrip() + "\n\nAssistant:"
        out.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return out


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str | Path) -> list[dict[str, str]]:
    """The rows of one of the two files."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
