"""TRL's GRPOTrainer on the prompts of `grpo_vs_trl.py`; the last line printed is JSON.

python benchmarks/run_grpo_trl.py FOLDER '{"bf16": false, "batch": 64, ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import time

import datasets
import numpy as np
import torch
import transformers
import trl
from grpo_vs_trl import GROUP, NEW, PROMPTS, score
from pairs import read
from run_trl import Clock

transformers.logging.set_verbosity_error()


def run(folder: str, settings: dict) -> dict:
    """`steps` steps; with "save" the first step's samples are written for our side."""
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")
    tokenizer.padding_side = "left"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        f"{folder}/model", dtype=getattr(torch, settings.get("weights", "float32"))
    )
    rows = PROMPTS * GROUP
    args = trl.GRPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=rows // settings["batch"],
        num_generations=GROUP,
        max_completion_length=NEW,
        max_steps=settings["steps"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        cache_implementation=settings.get("cache"),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=settings["bf16"],
        use_cpu=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    clock = Clock(settings["warmup"], time.process_time)
    data = datasets.Dataset.from_list(read(f"{folder}/prompts.jsonl"))

    def reward(completions, **_):
        return [score(text) for text in completions]

    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=reward,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    first = {}
    plain = trainer._compute_loss

    def watched(model, inputs):
        if settings.get("save") and not first:
            first["on"] = True
            _save(folder, trainer, model, inputs)
        return plain(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    steps = clock.steps - clock.warmup
    return {
        "seconds": (clock.end - clock.begin) / steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)},
        "losses": [log["loss"] for log in clock.logs],
        "grad_norms": [log["grad_norm"] for log in clock.logs],
        "rewards": [log["reward"] for log in clock.logs],
        "tokens": [log["completions/mean_length"] for log in clock.logs],
    }


def _save(folder, trainer, model, inputs):
    """The first step's samples: prompts, completions, their log-probs and advantages."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    size = inputs["completion_ids"].size(1)
    with torch.no_grad():
        logps = trainer._get_per_token_logps_and_entropies(model, ids, mask, size)[0]
    names = "prompt_ids prompt_mask completion_ids completion_mask".split()
    arrays = {name: inputs[name].numpy() for name in names}
    texts = trainer.processing_class.batch_decode(
        inputs["completion_ids"], skip_special_tokens=True
    )
    arrays["rewards"] = np.array([score(text) for text in texts], np.float32)
    np.savez(f"{folder}/first.npz", logps=logps.float().numpy(), **arrays)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
