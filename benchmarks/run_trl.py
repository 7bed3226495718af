"""TRL's DPOTrainer on one set of pairs; the last line printed is JSON.

python benchmarks/run_trl.py FOLDER chat '{"reference": "cached", "bf16": true, ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import time

import datasets
import torch
import transformers
import trl
from pairs import MAX_TOKENS, read

transformers.logging.set_verbosity_error()


class Clock(transformers.TrainerCallback):
    """Seconds between the end of the warm-up and the end of training."""

    def __init__(self, warmup, now):
        self.warmup, self.now = warmup, now
        self.begin, self.steps, self.logs = None, 0, []

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.warmup:
            self.begin = self.now()
        self.end, self.steps = self.now(), state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.logs.append(logs)


def run(folder: str, name: str, settings: dict) -> dict:
    """One epoch, or `steps` steps; figures of training and of the reference pass."""
    on_card = settings.get("device", "cpu") == "gpu"
    if on_card and not torch.cuda.is_available():
        sys.exit("torch sees no card: install a build of it with CUDA.")
    if "threads" in settings:
        torch.set_num_threads(settings["threads"])
    seconds = getattr(time, settings.get("clock", "process_time"))

    def now():
        if on_card:
            torch.cuda.synchronize()
        return seconds()

    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        f"{folder}/model",
        dtype=getattr(torch, settings.get("weights", "float32")),
        attn_implementation=settings.get("attention"),
    )
    rows = read(f"{folder}/{name}.jsonl")
    for row in rows:
        texts = row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]
        row["length"] = max(len(tokenizer(t)["input_ids"]) for t in texts)
    cached = settings["reference"] == "cached"
    args = trl.DPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings["groups"] // settings["batch"],
        max_steps=settings.get("steps", -1),
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=settings["bf16"],
        use_cpu=not on_card,
        use_liger_kernel=settings.get("liger", False),
        torch_compile=settings.get("compile", False),
        precompute_ref_log_probs=cached,
        train_sampling_strategy="group_by_length" if settings["grouped"] else "random",
        length_column_name="length",
        remove_unused_columns=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_card,
        dataloader_drop_last=True,
        max_length=settings.get("max_length", MAX_TOKENS),
        beta=0.1,
        logging_steps=1,
        logging_first_step=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    spent = {"reference": 0.0}
    plain = trl.DPOTrainer._precompute_ref_logps

    def timed(self, *some, **more):
        begin = now()
        out = plain(self, *some, **more)
        spent["reference"] += now() - begin
        return out

    trl.DPOTrainer._precompute_ref_logps = timed
    clock = Clock(settings["warmup"], now)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.DPOTrainer(
        model,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    pairs = (clock.steps - clock.warmup) * settings["groups"]
    return {
        "pairs": pairs,
        "train_s": clock.end - clock.begin,
        "reference_s_per_pair": spent["reference"] / len(rows),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "card_peak_mib": torch.cuda.max_memory_allocated() // 2**20 if on_card else 0,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)},
        "losses": [log["loss"] for log in clock.logs],
        "logps": [(log["logps/chosen"], log["logps/rejected"]) for log in clock.logs],
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
