"""Checkpoints out: the base repository's layout and dtypes, staged, renamed at the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data.files import write_json
from alanything_jax.hub import tensors as files
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.load import PROCESSOR_FILES
from alanything_jax.models import families
from alanything_jax.models.families import anything
from alanything_jax.models.params import flatten

MANIFEST = "alanything_manifest.json"


@contextlib.contextmanager
def staged(out_dir: str | Path) -> Iterator[Path]:
    """A folder beside `out_dir` that takes its name when all went well.

    Raises ValueError: `out_dir` exists and is not empty.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} is not empty, and an export never overwrites. Give another directory, "
            "or remove it first."
        )
    aside = out.with_name(f".{out.name}.incomplete")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    os.replace(aside, out)


def save(
    bundle: Bundle,
    out_dir: str | Path,
    *,
    notes: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a bundle as a Hugging Face directory.

    Args:
      bundle: with `heads.score` it becomes a `*ForSequenceClassification`.
      out_dir: new or empty.
      notes: what the model card says of the training (name -> value).
      max_shard_bytes: above it weights are split, with an index.

    Returns `out_dir`.
    """
    with staged(out_dir) as folder:
        arrays = disk_tensors(bundle)
        score = arrays.pop("score.weight", None)
        family = families.family_of(bundle.model.family)
        if score is not None and family.classifier:
            arrays["score.weight"] = score
        elif score is not None:
            files.write_one(folder / files.SCORE, {"score.weight": score})
        files.write(folder, arrays, max_shard_bytes)
        _copy_processor(bundle, folder)
        write_json(folder / "config.json", export_config(bundle))
        if bundle.generation_config and "score" not in bundle.params.get("heads", {}):
            write_json(folder / "generation_config.json", bundle.generation_config)
        if bundle.tokenizer is not None:
            bundle.tokenizer.save_pretrained(str(folder))
        # What a family's own coder knows follows from the other files.
        if bundle.coder is not None and family.coder is None:
            _save_codecs(bundle.coder, folder)
        (folder / "README.md").write_text(model_card(bundle, notes or {}))
        write_json(folder / MANIFEST, manifest(folder, bundle))
    return Path(out_dir)


def _copy_processor(bundle, folder):
    """The processor's files as the base has them, and the family's own."""
    for name, value in bundle.processor.items():
        write_json(folder / f"{name}.json", value)
    own = families.family_of(bundle.model.family).files
    for name in (*PROCESSOR_FILES, *own) if bundle.directory else ():
        if (bundle.directory / name).exists():
            shutil.copyfile(bundle.directory / name, folder / name)


def _save_codecs(coder, folder):
    """Which ids are codes of what, and the arrays of trained codecs."""
    from safetensors.numpy import save_file

    write_json(folder / anything.FILE, anything.to_json(coder))
    for kind, params in coder.params.items():
        if params:
            (folder / anything.FOLDER).mkdir(exist_ok=True)
            save_file(params, folder / anything.FOLDER / f"{kind}.safetensors")


def disk_tensors(bundle: Bundle) -> dict[str, np.ndarray]:
    """Name on disk -> array, in the dtype the base has there (else the parameters')."""
    scoring = "score" in bundle.params.get("heads", {})
    flat = flatten(bundle.params)
    out = {}
    for name, tensor in bundle.model.tensors(scoring).items():
        value = np.asarray(flat[tensor.path][tensor.lead])
        name = bundle.names.get(name, name)
        known = bundle.dtypes.get(name)
        dtype = files.DTYPES[known] if known else value.dtype
        out[name] = tensor.to_disk(value).astype(dtype)
    kept = dict(bundle.extra)
    if scoring and families.family_of(bundle.model.family).classifier:
        kept.pop("lm_head.weight", None)
    return out | kept


def export_config(bundle: Bundle) -> dict[str, Any]:
    """The base's config.json in its own spelling, with what the export changes."""
    config = dict(bundle.hf_config)
    family = families.family_of(bundle.model.family)
    if "score" in bundle.params.get("heads", {}) and family.classifier:
        config["architectures"] = [family.classifier]
        config["num_labels"] = 1
        config["id2label"], config["label2id"] = {"0": "LABEL_0"}, {"LABEL_0": 0}
        if config.get("pad_token_id") is None:
            names = ("pad_token_id", "eos_token_id")
            ids = [getattr(bundle.tokenizer, name, None) for name in names]
            config["pad_token_id"] = next((i for i in ids if i is not None), 0)
    else:
        config["architectures"] = [family.architecture]
    if not bundle.dtypes:
        config["dtype"] = str(np.dtype(bundle.params["embed"]["text"]["table"].dtype))
    return config


def model_card(bundle: Bundle, notes: Mapping[str, Any]) -> str:
    """README.md: what it was made from, and how; no licence is invented."""
    from huggingface_hub import ModelCardData

    hub_id = bundle.source if bundle.source.count("/") == 1 else None
    reward = "score" in bundle.params.get("heads", {})
    data = ModelCardData(
        base_model=hub_id,
        library_name="transformers",
        pipeline_tag="text-classification" if reward else "text-generation",
        tags=["alanything_jax", *([] if not reward else ["reward-model"])],
    )
    lines = [f"- {name}: {value}" for name, value in notes.items()]
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Trained with alanything_jax\n\n"
        f"Base: `{bundle.source}`. Its licence applies.\n\n" + "\n".join(lines) + "\n"
    )


def manifest(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Hashes of the weights and a few logits, for `alanything verify`."""
    hashes = {p.name: file_hash(p) for p in sorted(folder.glob("*.safetensors"))}
    ids, numbers = probe(bundle)
    return {"sha256": hashes, "probe_ids": ids, "probe_output": numbers}


def probe(bundle: Bundle) -> tuple[list[int], list[float]]:
    """A fixed prompt's ids and the model's last numbers on it: 8 logits, or the score.

    The pad token is left out, for a sequence classifier reads its score before it, and what
    stands for media. Computed in
    float32, whatever the weights are kept in, as those who reload them compute.
    """
    params = jax.tree.map(lambda x: x.astype(jnp.float32), bundle.params)
    size = bundle.model.config.vocab_size
    pad = export_config(bundle).get("pad_token_id")
    ids = [(7 * n * n + 3 * n + 11) % size for n in range(12)]
    soft = bundle.coder.soft if bundle.coder else {}
    apart = {pad, *(kind.token for kind in soft.values())}
    ids = [
        next(j % size for j in range(i, i + size) if j % size not in apart) for i in ids
    ]
    inputs = bundle.model.inputs(input_ids=np.array([ids]))
    if "score" in bundle.params.get("heads", {}):
        return ids, [float(bundle.model.scores(params, inputs)[0, -1])]
    logits = np.asarray(bundle.model.logits(params, inputs))[0, -1]
    return ids, [float(x) for x in logits[:: max(1, size // 8)][:8]]


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
