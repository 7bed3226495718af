"""LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors.

PEFT and vLLM name a layer by its place in transformers' class as it is in memory, not by
its name on disk: of a vision-language model `model.language_model.layers.0...`. An adapter
of other names is loaded without a word, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data.files import write_json
from alanything_jax.hub import tensors as files
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.save import MANIFEST, hub_id, manifest, model_card, staged
from alanything_jax.models.families import family_of
from alanything_jax.models.lora import Lora, layer_of, magnitudes
from alanything_jax.models.params import flatten

# Where the decoder lies in transformers' class, in memory: of text families under "model.",
# of others here or under "model.language_model.".
_TRUNKS = {
    "chameleon": "model.",
    "emu3": "model.text_model.",
    "qwen2_5_omni": "thinker.model.language_model.",
}


def save_adapter(
    bundle: Bundle,
    adapter: dict[str, Any],
    lora: Lora,
    out_dir: str | Path,
    *,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter that `peft.PeftModel.from_pretrained` loads.

    Of a reward model without a class of its own, the head is in score.safetensors.

    Args:
      bundle: the base model; its source is named in the config.
      adapter: the LoRA tree. lora: its settings.
      notes: what the model card says of the training (name -> value).
    """
    family = family_of(bundle.model.family)
    arrays = adapter_tensors(bundle, adapter)
    named = [name for name in arrays if name.endswith(".lora_A.weight")]
    modules = sorted({name.rsplit(".", 3)[1] for name in named})
    score = bundle.params.get("heads", {}).get("score")
    scoring = score is not None and bool(family.classifier)
    if not family.classifier:
        # Encoders and codecs have layers of the same names.
        trunk = re.escape(trunk_of(bundle.model.family))
        modules = rf"{trunk}layers\.\d+\.\w+\.({'|'.join(modules)})"
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scoring else "CAUSAL_LM",
        "base_model_name_or_path": hub_id(bundle)
        or str(bundle.directory or bundle.source),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": ["score"] if scoring else None,
    }
    head = {} if score is None else {"score.weight": np.asarray(score["kernel"]).T}
    with staged(out_dir) as folder:
        if scoring:
            kernel = head["score.weight"].astype(np.float32)
            arrays["base_model.model.score.weight"] = kernel
        elif head:
            files.write_one(folder / files.SCORE, head)
        files.write_one(folder / "adapter_model.safetensors", arrays)
        write_json(folder / "adapter_config.json", config)
        card = model_card(bundle, notes or {}, library="peft")
        (folder / "README.md").write_text(card)
        write_json(folder / MANIFEST, manifest(folder, notes or {}))
        if bundle.tokenizer is not None:
            bundle.tokenizer.save_pretrained(str(folder))
    return Path(out_dir)


def trunk_of(family: str) -> str:
    """What comes before `layers.` in the names of a family's modules, in memory."""
    text = "model." if family_of(family).classifier else "model.language_model."
    return _TRUNKS.get(family, text)


def adapter_tensors(bundle: Bundle, adapter: dict[str, Any]) -> dict[str, np.ndarray]:
    """PEFT's names -> [r, in] and [out, r] arrays, torch's order; of DoRA [out], too."""
    small, whole, out = flatten(adapter), flatten(bundle.params), {}
    trunk = trunk_of(bundle.model.family)
    for name, tensor in bundle.model.tensors().items():
        base = tensor.path.removesuffix("/kernel")
        if f"{base}/a" not in small:
            continue
        layer = name[name.index("layers.") :].removesuffix(".weight")
        module = f"base_model.model.{trunk}{layer}"
        kernel, parts = layer_of(whole, small, base, tensor.lead)
        a, b = (np.asarray(parts[n]) for n in ("a", "b"))
        out[f"{module}.lora_A.weight"] = np.ascontiguousarray(a)
        out[f"{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
        if "m" in parts:
            m = np.asarray(magnitudes(kernel, parts, 0.0)[0])
            out[f"{module}.lora_magnitude_vector"] = m
    return out
