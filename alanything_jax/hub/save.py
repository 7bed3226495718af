"""Checkpoints out: the base repository's layout and dtypes, staged, renamed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data.files import write_json
from alanything_jax.hub import tensors as files
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.load import PROCESSOR_FILES
from alanything_jax.models import families, quant
from alanything_jax.models.families import anything
from alanything_jax.models.model import Model
from alanything_jax.models.params import flatten
from alanything_jax.schema import Batch

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
    # Kernels in integers are ours alone: other programs expect floats.
    bundle = dataclasses.replace(bundle, params=quant.dequantize(bundle.params))
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
        write_json(folder / MANIFEST, manifest(folder, notes or {}, bundle))
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


def hub_id(bundle: Bundle) -> str:
    """`owner/name` of a base from the hub, else ""."""
    source = bundle.source
    named = re.fullmatch(r"\w[\w.-]*/[\w.-]+", source)
    return source if named and not Path(source).exists() else ""


def licence(bundle: Bundle) -> dict[str, Any]:
    """What the card of the base says of its licence: `license`, `license_name`, ..."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    card = bundle.directory and bundle.directory / "README.md"
    if not card or not card.exists():
        return {}
    try:
        said = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):
        # It cannot be read: as good as none, and the new card says "unknown".
        return {}
    return {name: value for name, value in said.items() if name.startswith("license")}


def model_card(
    bundle: Bundle, notes: Mapping[str, Any], library: str = "transformers"
) -> str:
    """README.md: what it was made from, and how; no licence is invented."""
    from huggingface_hub import ModelCardData

    reward = "score" in bundle.params.get("heads", {})
    kinds = set(bundle.coder.placeholders) if bundle.coder else set()
    task = "any-to-any" if kinds else "text-generation"
    for first in ({"audio"}, {"image"}, {"image", "video"}):
        if kinds == first:
            task = f"{min(kinds)}-text-to-text"
    found = licence(bundle)
    data = ModelCardData(
        base_model=hub_id(bundle) or None,
        # Of each its OWNER/NAME on the hub.
        datasets=re.findall(r"hf://datasets/([^/\s]+/[^/@\s]+)", str(notes.get("data")))
        or None,
        library_name=library,
        pipeline_tag="text-classification" if reward else task,
        tags=["alanything_jax", *(["reward-model"] if reward else [])],
        **found,
    )
    local = Path(bundle.source).exists()
    said = {
        # Where it lay on this machine is nobody else's business.
        "base": Path(bundle.source).name if local else bundle.source,
        "licence": f"{found['license']}, as the base's card says"
        if found.get("license")
        else "unknown: see the base",
        **notes,
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in said.items())
    return f"---\n{data.to_yaml()}\n---\n\n# Trained with alanything_jax\n\n{lines}\n"


def manifest(
    folder: Path, notes: Mapping[str, Any], bundle: Bundle | None = None
) -> dict[str, Any]:
    """Hashes of the weights; of a bundle a few logits, too, for `alanything verify`."""
    hashes = {p.name: file_hash(p) for p in sorted(folder.glob("*.safetensors"))}
    out = {"sha256": hashes, "notes": {n: str(value) for n, value in notes.items()}}
    if bundle is None:
        return out
    ids, numbers = probe(bundle)
    return out | {"probe_ids": ids, "probe_output": numbers}


def probe(
    bundle: Bundle, ids: Sequence[int] | None = None
) -> tuple[list[int], list[float]]:
    """A fixed prompt's ids and the model's last numbers on it: 8 logits, or the score.

    Ids that the config names are left out: a sequence classifier reads its score before
    the pad token, and placeholders stand for media. Computed in float32, whatever the
    weights are kept in, as those who reload them compute.
    """
    params = jax.tree.map(lambda x: x.astype(jnp.float32), bundle.params)
    size = bundle.model.config.vocab_size
    if ids is None:
        free = sorted(set(range(size)) - _named_ids(export_config(bundle)))
        ids = [free[(7 * n * n + 3 * n + 11) % len(free)] for n in range(12)]
    inputs = bundle.model.inputs(input_ids=np.array([ids]))
    if "score" in bundle.params.get("heads", {}):
        return list(ids), [float(outputs(bundle.model, params, inputs, True)[0, -1])]
    logits = np.asarray(outputs(bundle.model, params, inputs))[0, -1]
    return list(ids), [float(x) for x in logits[:: max(1, size // 8)][:8]]


@functools.partial(jax.jit, static_argnums=(0, 3))
def outputs(
    model: Model, params: dict[str, Any], inputs: Batch, scoring: bool = False
) -> jax.Array:
    """Logits [B, T, V], or the scores [B, T] of a reward model."""
    return (model.scores if scoring else model.logits)(params, inputs)


def _named_ids(config):
    """Every `*_token_id` and `*_token_index`, those of parts of the model, too."""
    out = set()
    for name, value in config.items():
        if isinstance(value, dict):
            out |= _named_ids(value)
        elif name.endswith(("_token_id", "_token_index")) and value is not None:
            out |= set(value if isinstance(value, list) else [value])
    return out


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
