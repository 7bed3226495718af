"""Checkpoints in: a Hugging Face directory, a hub id, or a GGUF file."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from alanything_jax.hub import tensors as files
from alanything_jax.hub.bundle import Bundle
from alanything_jax.models import codecs as all_codecs
from alanything_jax.models import quant
from alanything_jax.models.families import anything, family_of
from alanything_jax.models.families.common import Family, Tensor
from alanything_jax.models.model import Model
from alanything_jax.models.params import ParamSpec, flatten, unflatten

# Where a declared parameter goes; None = it stays a numpy array.
Place = Callable[[ParamSpec], Sharding | None]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
# Buffers that old exporters wrote; they follow from the config.
_HARMLESS = ("rotary_emb.inv_freq",)


def load(
    path: str | Path,
    dtype: str = "float32",
    mrope_advance: str = "max_plus_one",
    place: Place | None = None,
    quantize: str = "",
) -> Bundle:
    """Load a model with its tokenizer and configs.

    Args:
      path: a directory, a hub id, or a .gguf file.
      dtype: of the parameters.
      mrope_advance: "max_plus_one" (as checkpoints were trained) or "grid"
        (transformers 5.23); matters to families with video only.
      place: where a declared parameter goes. Each process then reads, of a directory, the
        bytes of its own shards alone; None = all on one device.
      quantize: "int8" or "nf4" keeps kernels of a directory so, each as soon as it is read.

    Raises ValueError: unknown family; truncated file; missing, unexpected or misshaped
    tensors (all of them listed).
    """
    if mrope_advance not in ("max_plus_one", "grid"):
        raise ValueError(f"mrope_advance={mrope_advance!r}: max_plus_one or grid.")
    if str(path).endswith(".gguf"):
        from alanything_jax.hub.gguf import load_gguf

        return load_gguf(Path(path), dtype)
    directory = _directory(path)
    if not (directory / "config.json").exists():
        raise ValueError(
            f"{directory} has no config.json: give a Hugging Face model directory, a hub "
            "id or a .gguf file."
        )
    model, config, coder = read_model(directory, mrope_advance)
    located = files.locate(directory)
    architecture = (config.get("architectures") or [""])[0]
    scoring = architecture.endswith("ForSequenceClassification")
    if (directory / files.SCORE).exists():
        scoring = True
        located |= files.located(directory / files.SCORE)
    params, extra, names = assemble(
        model,
        {name: entry["shape"] for name, (_, entry) in located.items()},
        lambda name: files.read(*located[name]),
        dtype,
        scoring,
        str(directory),
        place,
        quantize,
    )
    model = dataclasses.replace(model, quantize=quantize)
    tokenizer = read_tokenizer(directory)
    model = with_codes(model, config, directory)
    if coder is None and tokenizer is not None:
        try:
            coder = coder_of(model, tokenizer, config, directory)
        except (ValueError, TypeError, AttributeError) as error:
            # Odd processor files: weights and arrays of HF's processor are of use without.
            warnings.warn(
                f"{directory}: records with media cannot be read, `coder` is None: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
        if coder is not None and coder.grammar.blocks:
            cfg = dataclasses.replace(model.config, grammar=coder.grammar)
            model = dataclasses.replace(model, config=cfg)
    return Bundle(
        model=model,
        params=params,
        tokenizer=tokenizer,
        hf_config=config,
        source=str(path),
        directory=directory,
        generation_config=_json(directory / "generation_config.json"),
        extra=extra,
        dtypes={name: entry["dtype"] for name, (_, entry) in located.items()},
        names=names,
        coder=coder,
    )


def read_model(
    directory: Path, mrope_advance: str = "max_plus_one"
) -> tuple[Model, dict[str, Any], Any | None]:
    """The model of a directory, its config.json, its coder; no weights are read."""
    config = _json(directory / "config.json")
    coder = read_coder(directory)
    cfg = family_of(config.get("model_type")).config(config)
    if coder is not None:
        cfg = dataclasses.replace(cfg, grammar=coder.grammar)
    if cfg.mrope is not None:
        mrope = dataclasses.replace(cfg.mrope, advance=mrope_advance)
        cfg = dataclasses.replace(cfg, mrope=mrope)
    return Model(config["model_type"], cfg), config, coder


def with_codes(model: Model, config: dict[str, Any], directory: Path) -> Model:
    """The model with the codec that lies among its weights, if its family has one.

    Raises ValueError: its tensors are not there.
    """
    make = family_of(model.family).codes
    if make is None:
        return model
    codes = make(config, *all_codecs.load(directory))
    return dataclasses.replace(model, codes=codes)


def coder_of(
    model: Model, tokenizer: Any, config: dict[str, Any], directory: Path
) -> Any | None:
    """The family's coder, of a model `with_codes`; None for text."""
    make = family_of(model.family).coder
    if make is None:
        return None
    codes = [] if model.codes is None else [model.codes]
    return make(tokenizer, model.config, config, processors(directory), *codes)


def processors(directory: Path) -> dict[str, Any]:
    """What a directory says of its processor, all files in one; later ones win."""
    out: dict[str, Any] = {}
    for name in PROCESSOR_FILES:
        out |= {name.removesuffix(".json"): _json(directory / name) or {}}
    return out


def read_coder(directory: Path) -> Any | None:
    """Grammar and codecs of an any-to-any model; None for a text model."""
    stated = _json(directory / anything.FILE)
    if stated is None:
        return None
    params = {}
    for path in sorted((directory / anything.FOLDER).glob("*.safetensors")):
        entries = files.header(path)
        params[path.stem] = {
            n: np.array(files.read(path, e)) for n, e in entries.items()
        }
    return anything.from_json(stated, params)


def assemble(
    model: Model,
    shapes: dict,
    read: Any,
    dtype: str,
    scoring: bool,
    where: str,
    place: Place | None = None,
    quantize: str = "",
) -> tuple[dict, dict, dict[str, str]]:
    """Our parameter tree from tensors on disk.

    Args:
      shapes: name on disk -> shape, of all that is there.
      read: name -> array.

    Returns:
      Parameters; tensors that we do not use; canonical names -> names on disk.

    Raises ValueError: listing every missing, unexpected and misshaped tensor.
    """
    family, cfg = family_of(model.family), model.config
    wanted = model.tensors(scoring)
    names = {canonical(family, name): name for name in shapes}
    head = family.names(cfg)["heads/text/kernel"][0]
    tied_copy = {head} if cfg.tied or scoring else set()
    passed = re.compile(family.unused or r"(?!)")
    extra = {
        name
        for name in names
        if name not in wanted
        and (name.endswith(_HARMLESS) or passed.match(name) or name in tied_copy)
    }
    missing = sorted(set(wanted) - set(names))
    unexpected = sorted(set(names) - set(wanted) - extra)
    misshaped = [
        f"{name} is {list(shapes[names[name]])}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in names and tuple(shapes[names[name]]) != tensor.shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshaped", misshaped),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit its config.json; {'; '.join(problems)}. Nothing was "
            "loaded. Check that config and weights are of the same model."
        )
    specs = flatten(model.specs(scoring))
    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    parts: dict[str, list] = {path: [] for path in specs}
    for name, tensor in wanted.items():
        parts[tensor.path].append((tensor, names[name]))

    def leaf(path, spec):
        def cut(index):
            return piece(parts[path], read, index, spec.shape, kind)

        if place is None:
            return jnp.asarray(cut(()))
        sharding = place(spec)
        if sharding is None:
            return cut(())
        return jax.make_array_from_callback(spec.shape, sharding, cut)

    # One leaf at a time, so that host memory never holds the model twice.
    tree: dict = {}
    for path, spec in specs.items():
        tree |= quant.stored(path, leaf(path, spec), spec, quantize)
    tree = unflatten(tree)
    kept = {names[n]: np.array(read(names[n])) for n in sorted(extra)}
    return tree, kept, names


def canonical(family: Family, name: str) -> str:
    """A tensor's name on disk as `family.names` spells it."""
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    return name


def piece(
    parts: Sequence[tuple[Tensor, str]],
    read: Any,
    index: tuple[slice, ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> np.ndarray:
    """`parameter[index]` from its tensors on disk, one a place of its stacked dims.

    Nothing but the piece is held in memory: what is read is mapped, and transposed by
    its strides.
    """
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    first, name = parts[0]
    depth = len(first.lead)
    if not depth:
        return np.array(first.to_ours(read(name), shape)[index], dtype)
    ranges = [range(size)[at] for size, at in zip(shape, index, strict=True)]
    out = np.empty([len(r) for r in ranges], dtype)
    for tensor, name in parts:
        leads = zip(tensor.lead, ranges, strict=False)
        if all(n in some for n, some in leads):
            place = tuple(r.index(n) for n, r in zip(tensor.lead, ranges, strict=False))
            value = tensor.to_ours(read(name), shape[depth:])
            out[place] = value[index[depth:]]
    return out


def _directory(path):
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_file():
        raise ValueError(f"{path} is a file; give its directory, or a .gguf file.")
    if str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise FileNotFoundError(
            f"no model at {path}, and it is no hub id (owner/name)."
        )
    from huggingface_hub import snapshot_download

    keep = [
        "README.md",
        "*.safetensors",
        "*.json",
        "*.jinja",
        "*.model",
        "*.txt",
        "spk_dict.pt",
    ]
    try:
        return Path(snapshot_download(str(path), allow_patterns=keep))
    except Exception as error:
        raise OSError(
            f"could not fetch {path} from the Hugging Face hub: {type(error).__name__}: "
            f"{error}. Check the name and the network, or give a local directory."
        ) from error


def _json(path):
    return json.loads(path.read_text()) if path.exists() else None


def read_tokenizer(path: str | Path) -> Any | None:
    """The tokenizer of a directory or hub id; None where there are no files of one."""
    directory = _directory(path)
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    # Where processors of transformers 4 kept it; tokenizers do not look there.
    older = directory / "chat_template.json"
    if older.exists() and not (directory / "chat_template.jinja").exists():
        tokenizer.chat_template = json.loads(older.read_text())["chat_template"]
    return tokenizer
