"""Reload what was written and compare: with ourselves, and with transformers if there."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np

from alanything_jax.hub import tensors as files
from alanything_jax.hub.load import load
from alanything_jax.hub.save import MANIFEST, file_hash, outputs, probe

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing looked at: passed True or False; None where it could not be."""

    name: str
    passed: bool | None
    detail: str


def verify(directory: str | Path, against: str | Path | None = None) -> list[Check]:
    """Every check of an exported directory; with `against`, also the base's layout.

    Raises:
      ValueError: the directory cannot be loaded at all (all that is wrong is listed).
    """
    directory = Path(directory)
    bundle = load(directory)
    located = files.locate(directory)
    size = sum(int(np.prod(e["shape"])) for _, e in located.values())
    checks = [
        Check("names and shapes", True, f"{len(located)} tensors, {size:,} values")
    ]
    index = directory / files.INDEX
    if index.exists():
        stated = json.loads(index.read_text())["metadata"]["total_size"]
        real = sum(
            e["data_offsets"][1] - e["data_offsets"][0] for _, e in located.values()
        )
        checks.append(
            Check("index", stated == real, f"{stated} stated, {real} bytes found")
        )
    written = directory / MANIFEST
    if written.exists():
        checks += _as_written(directory, bundle, json.loads(written.read_text()))
    else:
        checks.append(
            Check("hashes", None, f"no {MANIFEST}: written by another program")
        )
    if bundle.tokenizer is not None:
        checks.append(_tokenizer(bundle.tokenizer))
    if against is not None:
        checks.append(_layout(located, files.locate(Path(against))))
    return [*checks, *_transformers(directory, bundle)]


def _as_written(directory, bundle, manifest):
    hashes = {p.name: file_hash(p) for p in sorted(directory.glob("*.safetensors"))}
    same = hashes == manifest["sha256"]
    detail = (
        f"{len(hashes)} files" if same else "weights changed since they were written"
    )
    _, now = probe(bundle, manifest["probe_ids"])
    gap = float(np.max(np.abs(np.array(now) - np.array(manifest["probe_output"]))))
    return [
        Check("hashes", same, detail),
        Check(
            "our reloaded outputs", gap <= TOLERANCE, f"largest difference {gap:.1e}"
        ),
    ]


def _tokenizer(tokenizer):
    text = "Aligned, any-to-any: 3 words & 1 number."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        # It knows some words only: take a few of those.
        known = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
        text = tokenizer.decode(sorted(known)[:12])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    return Check("tokenizer round trip", back == text, f"{len(ids)} tokens -> {back!r}")


def _layout(ours, base):
    def layout(located):
        return {n: (e["dtype"], tuple(e["shape"])) for n, (_, e) in located.items()}

    a, b = layout(ours), layout(base)
    differ = sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))
    detail = (
        f"differ: {differ[:5]}" if differ else f"{len(a)} tensors of the same layout"
    )
    return Check("layout of the base", not differ, detail)


def _transformers(directory, bundle):
    """What transformers says of the directory, where torch is installed."""
    if importlib.util.find_spec("torch") is None:
        return [
            Check(
                "transformers",
                None,
                "torch is not installed; checked by ourselves only",
            )
        ]
    import torch
    import transformers

    name = bundle.hf_config["architectures"][0]
    kind = getattr(transformers, name, None)
    if kind is None:
        return [
            Check("transformers", None, f"{transformers.__version__} has no {name}")
        ]
    # Qwen2.5-Omni's own `from_pretrained` fails where loading info is asked for.
    model, info = transformers.PreTrainedModel.from_pretrained.__func__(
        kind, str(directory), dtype=torch.float32, output_loading_info=True
    )
    wrong = {name: value for name, value in info.items() if value}
    whole = Check(
        "transformers loads it whole",
        not wrong,
        str(wrong or f"nothing missing: {name}"),
    )
    scoring = "score" in bundle.params.get("heads", {})
    if scoring and not name.endswith("ForSequenceClassification"):
        detail = f"{name} has no scalar head: {files.SCORE} was read by ourselves only"
        return [whole, Check("transformers' score", None, detail)]
    if bundle.model.family == "qwen2_5_omni":
        model = model.thinker
    ids, _ = probe(bundle)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits.numpy()[0]
    inputs = bundle.model.inputs(input_ids=np.array([ids]))
    ours = np.asarray(outputs(bundle.model, bundle.params, inputs, scoring))[0]
    # Chameleon never says codes of pictures: it gives those the least number there is.
    said = theirs > np.finfo(np.float32).min
    gap = float(np.max(np.abs(theirs - (ours[-1:] if scoring else ours))[said]))
    return [
        whole,
        Check(
            "transformers' logits", gap <= TOLERANCE, f"largest difference {gap:.1e}"
        ),
    ]
