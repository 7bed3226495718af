"""LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data.files import write_json
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.save import staged
from alanything_jax.models.lora import Lora, num_inputs
from alanything_jax.models.params import flatten


def save_adapter(
    bundle: Bundle, adapter: dict[str, Any], lora: Lora, out_dir: str | Path
) -> Path:
    """Write an adapter that `peft.PeftModel.from_pretrained` loads.

    Args:
      bundle: the base model; its source is named in the config.
      adapter: the LoRA tree. lora: its settings.
    """
    from safetensors.numpy import save_file

    arrays = adapter_tensors(bundle, adapter)
    modules = sorted({name.rsplit(".", 3)[1] for name in arrays})
    scoring = "score" in bundle.params.get("heads", {})
    base = bundle.directory if bundle.directory else bundle.source
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scoring else "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "use_dora": False,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": ["score"] if scoring else None,
    }
    if scoring:
        kernel = np.asarray(bundle.params["heads"]["score"]["kernel"], np.float32)
        arrays["base_model.model.score.weight"] = np.ascontiguousarray(kernel.T)
    with staged(out_dir) as folder:
        place = folder / "adapter_model.safetensors"
        save_file(arrays, place, metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", config)
        if bundle.tokenizer is not None:
            bundle.tokenizer.save_pretrained(str(folder))
    return Path(out_dir)


def adapter_tensors(bundle: Bundle, adapter: dict[str, Any]) -> dict[str, np.ndarray]:
    """PEFT's names -> [r, in] and [out, r] arrays, torch's order."""
    small, out = flatten(adapter), {}
    for name, tensor in bundle.model.tensors().items():
        base = tensor.path.removesuffix("/kernel")
        if f"{base}/a" not in small:
            continue
        a, b = (np.asarray(small[f"{base}/{n}"][tensor.lead]) for n in ("a", "b"))
        rank = a.shape[0]
        module = f"base_model.model.{name.removesuffix('.weight')}"
        assert a.ndim == num_inputs(base) + 1
        out[f"{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(rank, -1))
        out[f"{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    return out
