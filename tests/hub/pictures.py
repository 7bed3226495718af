"""Tiny models with a tower for pictures: drawn anew, fed, and compared with ours."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers

from alanything_jax import hub
from alanything_jax.hub import tensors as files
from alanything_jax.models import decoder

IMAGE, VOCAB = 95, 99


def redraw(config, seed=0):
    """A model of a config with every parameter drawn anew, norms and biases about 1 and 0."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
            else:
                # Gemma3's projection alone lies [in, out].
                fan_in = value.shape[0] if "_projection_" in path else value[0].numel()
                value.copy_(torch.randn_like(value) / math.sqrt(fan_in))
    return model.eval()


def rows(side, outputs, length, token=IMAGE):
    """Two pictures of the same row, one padded on the right, none, one padded on the left."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 90, (4, length)), np.ones((4, length), np.int64)
    for row, first in ((0, 2), (0, 6 + outputs), (1, 1), (3, length - 3 - outputs)):
        ids[row, first : first + outputs] = token
    mask[1, -5:] = mask[3, :4] = 0
    pixels = rng.normal(size=(4, 3, side, side)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def text_of(arrays):
    return {n: a[2:3] for n, a in arrays.items() if n != "pixel_values"}


def theirs(model, arrays):
    with torch.no_grad():
        return model(**{n: torch.tensor(a) for n, a in arrays.items()}).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, inputs):
    return model.logits(params, inputs)


def gap(bundle, arrays, expected):
    """The largest difference at real tokens."""
    inputs = bundle.model.inputs(**arrays)
    ours = np.asarray(logits(bundle.model, bundle.params, inputs))
    return np.max(np.abs(ours - expected)[arrays["attention_mask"] > 0])


def check(model, arrays, folder):
    """Logits with pictures and without; files that transformers, too, loads whole."""
    model.save_pretrained(folder / "hf")
    bundle = hub.load(folder / "hf")
    expected = theirs(model, arrays)
    assert gap(bundle, arrays, expected) <= 1e-4
    text = text_of(arrays)
    assert gap(bundle, text, theirs(model, text)) <= 1e-4

    hub.save(bundle, folder / "out")
    before, after = (
        safetensors.numpy.load_file(folder / name / files.SINGLE)
        for name in ("hf", "out")
    )
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    np.testing.assert_array_equal(theirs(again, arrays), expected)
    assert gap(hub.load(folder / "out"), arrays, expected) <= 1e-4
    return bundle, expected


def respell(folder, config, rename):
    """Rewrite a directory's config.json and the names of its tensors."""
    path = folder / "config.json"
    path.write_text(json.dumps(config(json.loads(path.read_text()))))
    arrays = safetensors.numpy.load_file(folder / files.SINGLE)
    arrays = {rename(name): value for name, value in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / files.SINGLE, {"format": "pt"})


def gradients(bundle, arrays):
    """Of all hidden states' squares, padding's too."""
    inputs = bundle.model.inputs(**arrays)

    def loss(params):
        states = decoder.hidden(params, bundle.model.config, inputs)
        return jnp.sum(jnp.square(states))

    return jax.jit(jax.grad(loss))(bundle.params)
