"""VQ-GAN codecs of pictures (arXiv:2012.09841), as in Chameleon and Janus.

A convolutional encoder, the nearest row of a table for each of its outputs, a decoder.
`params` has the names and layouts of the checkpoint, without its prefix. How many levels,
blocks and attentions a net has follows from the names. `emu3_vq` is made of the same parts.

transformers has no decoder for Chameleon. Ours is that of taming-transformers, whose
names Meta's checkpoint has: `decoder.up.0` is the finest level and comes last. Janus
numbers its levels as they come.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from alanything_jax.models.codecs import pictures, vq

TABLE = "quantize.embedding.weight"
# What a checkpoint may hold beside, such as a discriminator, is left there.
OURS = (
    r"(encoder|decoder|quant_conv|post_quant_conv|quantize\.embedding)\..*(?<!_tracked)"
)
Params = Mapping[str, Any]
Norm = Callable[[Params, str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class VQGAN:
    """Pictures; those of another size are resized. Codes run row by row.

    Attributes:
      height, width: pixels of a picture. patch: of the side a code stands for.
      size: number of codes.
      fit: cut what is too long off, or make a square with a margin.
      resample: PIL's number of a filter. scale, mean, std: the nets take
        (uint8 * scale - mean) / std.
      unit: where rows of the table are scaled to length 1. Janus was trained with
        "always"; transformers reads pictures otherwise ("decode"). Chameleon: "never".
      coarse_first: the decoder's levels are numbered as they come.
    """

    height: int = 512
    width: int = 512
    patch: int = 16
    size: int = 8192
    fit: Literal["crop", "pad"] = "crop"
    resample: int = 1
    scale: float = 0.0078
    mean: tuple[float, ...] = (1.0, 1.0, 1.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    unit: Literal["never", "decode", "always"] = "never"
    coarse_first: bool = False

    kind: ClassVar = "image"
    stop: ClassVar = False
    frame: ClassVar = 1

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"{self.height} x {self.width} pixels are no whole number of patches of "
                f"{self.patch}: give multiples."
            )
        if self.fit == "pad" and self.height != self.width:
            raise ValueError('fit="pad" makes squares: give one height and width.')

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of a picture: rows, columns."""
        return self.height // self.patch, self.width // self.patch

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    @functools.partial(jax.jit, static_argnums=0)
    def codes(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [B, H, W, 3] of any size -> codes [B, h, w] int32."""
        with jax.default_matmul_precision("highest"):
            latents = conv(params, "quant_conv", encoder(params, pixels))
        rows = array(params, TABLE)
        if self.unit == "always":
            latents, rows = _unit(latents), _unit(rows)
        return vq.quantize(rows[None], latents)[0][..., 0]

    @functools.partial(jax.jit, static_argnums=0)
    def pixels(self, params: Params, codes: jax.Array) -> jax.Array:
        """Codes [B, h, w] of any size -> normalised pixels [B, H, W, 3].

        Raises ValueError: the checkpoint has no decoder.
        """
        if "decoder.conv_in.weight" not in params:
            raise ValueError(
                "this checkpoint has no decoder, as transformers' Chameleon: it makes "
                "codes only. Add the tensors `decoder.*` and `post_quant_conv.*` of "
                "Meta's vqgan.ckpt to its safetensors, beside `encoder.*`."
            )
        rows = array(params, TABLE)[codes]
        rows = rows if self.unit == "never" else _unit(rows)
        with jax.default_matmul_precision("highest"):
            x = conv(params, "post_quant_conv", rows)
            return decoder(params, x, coarse_first=self.coarse_first)

    def prepared(self, media: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> normalised float32 [height, width, 3], as HF's processor.

        Raises ValueError: another shape or dtype.
        """
        pictures.check(media, 3)
        if self.fit == "crop":
            media = pictures.cropped(media, self.height, self.width, self.resample)
        else:
            colour = [int(255 * mean) for mean in self.mean]
            media = pictures.padded(media, self.height, self.resample, colour)
        return pictures.normalised(self, media)

    def encode(self, params: Params, media: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> codes [length]; see `prepared`."""
        pixels = self.prepared(media)[None]
        return np.asarray(self.codes(dict(params), pixels)).reshape(-1)

    def decode(self, params: Params, codes: np.ndarray) -> np.ndarray:
        """Codes [length], or [h, w] of another size -> uint8 pixels.

        Raises ValueError: another number of codes; one out of range; no decoder.
        """
        codes = pictures.as_grid(self, codes)
        return pictures.painted(self, self.pixels(dict(params), codes[None])[0])


def from_hf(
    config: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    names: Iterable[str],
    prefix: str | None = None,
) -> tuple[VQGAN, dict[str, np.ndarray]]:
    """Codec and arrays of a chameleon, janus, chameleon_vqgan or janus_vqgan directory.

    Args:
      config: config.json; its `image_processor`, if any, is a preprocessor_config.json.
      read: name on disk -> array. names: all names on disk.
      prefix: of the codec's names, such as "model.vqmodel."; None = look for it.
    """
    params = arrays(read, names, prefix)
    vq_config = config.get("vq_config", config)
    processor = config.get("image_processor") or {}
    patch = 2 ** (count(params, "encoder.down") - 1)
    if config["model_type"].startswith("janus"):
        side = vq_config.get("num_patches", 32) * patch
        if "vision_config" in config:
            vision = config["vision_config"]
            shown = vision.get("image_size", 384) // vision.get("patch_size", 16)
            side = shown * patch
        # As trained: -1..1. What the processor's class defaults to is CLIP's.
        half = (0.5, 0.5, 0.5)
        codec = VQGAN(
            side, side, patch, fit="pad", resample=3, scale=1 / 255, mean=half, std=half,
            unit="always", coarse_first=True,
        )  # fmt: skip
    else:
        side = vq_config.get("resolution", 512)
        crop = processor.get("crop_size") or side
        if isinstance(crop, int):
            crop = {"height": crop, "width": crop}
        codec = VQGAN(crop["height"], crop["width"], patch)
    stated = pictures.preprocessing(processor)
    return dataclasses.replace(codec, size=len(params[TABLE]), **stated), params


def arrays(
    read: Callable[[str], np.ndarray], names: Iterable[str], prefix: str | None = None
) -> dict[str, np.ndarray]:
    """The codec's arrays, float32, from a checkpoint that may hold a whole model.

    Raises ValueError: there is none, or several.
    """
    names = list(names)
    found = {name.removesuffix(TABLE) for name in names if name.endswith(TABLE)}
    if prefix is None and len(found) == 1:
        (prefix,) = found
    if prefix not in found:
        raise ValueError(
            f"no tensor {prefix or ''}{TABLE}; the checkpoint has it under "
            f"{sorted(found) or 'no prefix'}. Give a whole checkpoint with a VQ model."
        )
    ours = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
    return {
        name: np.asarray(read(prefix + name)).astype(np.float32)
        for name in ours
        if re.fullmatch(OURS, name)
    }


# --- nets: [B, height, width, channels]; normalised pixels about -1..1 ---


def array(params: Params, name: str) -> Any:
    """One array. Raises ValueError naming it: the checkpoint lacks it."""
    if name not in params:
        raise ValueError(f"the codec's arrays lack {name!r}. Give a whole checkpoint.")
    return params[name]


def count(params: Params, name: str) -> int:
    """How many `name.0`, `name.1`, ... there are."""
    start = f"{name}."
    return len({n[len(start) :].split(".")[0] for n in params if n.startswith(start)})


def conv(
    params: Params, name: str, x: jax.Array, stride: Any = 1, pad: Any = "SAME"
) -> jax.Array:
    """A convolution of two or three dims, or a dense layer; kernels as torch has them."""
    kernel, bias = array(params, f"{name}.weight"), array(params, f"{name}.bias")
    if kernel.ndim == 2:
        return x @ kernel.T + bias
    dims = "DHW"[-(kernel.ndim - 2) :]
    names = (f"N{dims}C", f"OI{dims}", f"N{dims}C")
    strides = (stride,) * len(dims) if isinstance(stride, int) else stride
    return bias + jax.lax.conv_general_dilated(
        x, kernel, strides, pad, dimension_numbers=names
    )


def group_norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Over a picture and each of 32 groups of channels."""
    groups = rearrange(x, "b h w (g c) -> b h w g c", g=32)
    mean = groups.mean((1, 2, 4), keepdims=True)
    variance = groups.var((1, 2, 4), keepdims=True)
    x = ((groups - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return x * array(params, f"{name}.weight") + array(params, f"{name}.bias")


def residual(params: Params, name: str, x: jax.Array, norm: Norm) -> jax.Array:
    """Twice norm, silu and convolution, beside the input."""
    y = conv(params, f"{name}.conv1", jax.nn.silu(norm(params, f"{name}.norm1", x)))
    y = conv(params, f"{name}.conv2", jax.nn.silu(norm(params, f"{name}.norm2", y)))
    if f"{name}.nin_shortcut.weight" in params:
        x = conv(params, f"{name}.nin_shortcut", x)
    return x + y


def attention(
    params: Params, name: str, x: jax.Array, norm: Norm, heads: int
) -> jax.Array:
    """Every place attends to all, beside the input; nothing where it has no arrays."""
    if f"{name}.q.weight" not in params:
        return x
    y = norm(params, f"{name}.norm", x)
    q, k, v = (
        rearrange(conv(params, f"{name}.{n}", y), "b h w (n d) -> b (h w) n d", n=heads)
        for n in "qkv"
    )
    y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    return x + conv(params, f"{name}.proj_out", y)


def enlarged(x: jax.Array, by: int = 2) -> jax.Array:
    """Each pixel `by` times as high and wide."""
    return repeat(x, "b h w c -> b (h y) (w x) c", y=by, x=by)


def level(params: Params, name: str, x: jax.Array, norm: Norm, heads: int) -> jax.Array:
    """The blocks of one resolution, and the step to the next."""
    for n in range(count(params, f"{name}.block")):
        x = residual(params, f"{name}.block.{n}", x, norm)
        x = attention(params, f"{name}.attn.{n}", x, norm, heads)
    if f"{name}.downsample.conv.weight" in params:
        # Zeros at the far edges only, unlike "SAME" for odd sizes.
        x = conv(params, f"{name}.downsample.conv", x, 2, ((0, 1), (0, 1)))
    if f"{name}.upsample.conv.weight" in params:
        x = conv(params, f"{name}.upsample.conv", enlarged(x))
    return x


def _middle(params, name, x, norm, heads):
    x = residual(params, f"{name}.block_1", x, norm)
    x = attention(params, f"{name}.attn_1", x, norm, heads)
    return residual(params, f"{name}.block_2", x, norm)


def encoder(params: Params, x: jax.Array, heads: int = 1) -> jax.Array:
    """Normalised pixels -> latents before `quant_conv`."""
    x = conv(params, "encoder.conv_in", x)
    for n in range(count(params, "encoder.down")):
        x = level(params, f"encoder.down.{n}", x, group_norm, heads)
    x = _middle(params, "encoder.mid", x, group_norm, heads)
    x = group_norm(params, "encoder.norm_out", x)
    return conv(params, "encoder.conv_out", jax.nn.silu(x))


def decoder(
    params: Params,
    x: jax.Array,
    norm: Norm = group_norm,
    coarse_first: bool = False,
    heads: int = 1,
) -> jax.Array:
    """Latents after `post_quant_conv` -> normalised pixels."""
    x = conv(params, "decoder.conv_in", x)
    x = _middle(params, "decoder.mid", x, norm, heads)
    levels = range(count(params, "decoder.up"))
    for n in levels if coarse_first else reversed(levels):
        x = level(params, f"decoder.up.{n}", x, norm, heads)
    return conv(
        params, "decoder.conv_out", jax.nn.silu(norm(params, "decoder.norm_out", x))
    )


def _unit(x):
    """Rows of length 1."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, 1e-12)
