"""Emu3's codec of pictures and clips (arXiv:2409.18869): a VQ-GAN in space and time.

MoVQ (arXiv:2209.09002): every norm of the decoder is scaled and shifted by the codes'
rows. Each frame goes through the nets of `vqgan` by itself; convolutions that look back
in time make one latent of four frames, and four of one. A picture is a clip of four
equal frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.models.codecs import pictures, vq, vqgan
from alanything_jax.models.codecs.vqgan import Params

# Names on disk -> those that the nets of `vqgan` read.
_RENAMED = (
    (r"\b(down|up)_block\.", ""),
    (r"\bmiddle_block\.attn_norm\.", "mid.attn_1.norm."),
    (r"\bmiddle_block\.", "mid."),
    (r"\battn_norms\.(\d+)\.", r"attn.\1.norm."),
    (r"\b([qkv])_proj\.", r"\1."),
    (r"\bout_proj\.", "proj_out."),
)


@dataclasses.dataclass(frozen=True)
class Emu3VQ:
    """Pictures (`kind="image"`), and clips (`kind="video"`) of so many frames.

    Others are resized and cut to the codec's height and width; `any_size` keeps their
    shape, as Emu3's processor does. Codes run frame by frame, row by row.

    Attributes:
      height, width: pixels. frames: of a clip; 1 for pictures.
      patch: pixels of the side a code stands for. fold: frames it stands for.
      size: number of codes. heads: of the attention.
      min_pixels, max_pixels: of what `any_size` makes.
      The others are those of `vqgan.VQGAN`.
    """

    kind: Literal["image", "video"] = "image"
    height: int = 720
    width: int = 720
    frames: int = 1
    patch: int = 8
    fold: int = 4
    size: int = 32768
    heads: int = 1
    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    resample: int = 3
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    stop: ClassVar = False
    frame: ClassVar = 1

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"{self.height} x {self.width} pixels are no whole number of patches of "
                f"{self.patch}: give multiples."
            )
        if self.kind == "image" and self.frames != 1:
            raise ValueError("an image has frames=1.")
        if self.kind == "video" and self.frames % self.fold:
            raise ValueError(
                f"a clip of {self.frames} frames: give whole {self.fold}s."
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Codes along (frames,) rows and columns."""
        plane = (self.height // self.patch, self.width // self.patch)
        return (self.frames // self.fold, *plane) if self.kind == "video" else plane

    @property
    def length(self) -> int:
        """Codes of a picture or clip."""
        return math.prod(self.grid)

    @functools.partial(jax.jit, static_argnums=0)
    def codes(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Normalised pixels -> codes int32, of any size.

        [B, H, W, 3] of pictures -> [B, h, w]; [B, F, H, W, 3] of clips -> [B, f, h, w].
        """
        picture = pixels.ndim == 4
        frames = pixels[:, None] if picture else pixels
        with jax.default_matmul_precision("highest"):
            x = _each_frame(lambda x: vqgan.encoder(params, x, self.heads), frames)
            x = jnp.repeat(x, self.fold, axis=1) if picture else x
            for n in range(vqgan.count(params, "encoder.time_conv")):
                x = _time_conv(params, f"encoder.time_conv.{n}.conv", x, stride=2)
                x = jax.nn.silu(x)
            x = _time_stack(params, "encoder.time_res_stack", x)
            x = _time_conv(params, "quant_conv", x)
        table = vqgan.array(params, vqgan.TABLE)[None]
        # A row of latents at a time: [B, f, h, w, size] would be gigabytes.
        codes = jax.lax.map(
            lambda row: vq.quantize(table, row)[0][..., 0], jnp.moveaxis(x, 2, 0)
        )
        codes = jnp.moveaxis(codes, 0, 2)
        return codes[:, 0] if picture else codes

    @functools.partial(jax.jit, static_argnums=0)
    def pixels(self, params: Params, codes: jax.Array) -> jax.Array:
        """The inverse of `codes`: normalised pixels [B, H, W, 3] or [B, F, H, W, 3]."""
        picture = codes.ndim == 3
        rows = vqgan.array(params, vqgan.TABLE)[codes[:, None] if picture else codes]
        with jax.default_matmul_precision("highest"):
            # What is drawn, and what guides the norms, go the same way through time.
            x = jnp.concatenate([_time_conv(params, "post_quant_conv", rows), rows])
            x = _time_stack(params, "decoder.time_res_stack", x)
            for n in range(vqgan.count(params, "decoder.time_conv")):
                x = jnp.repeat(x, 2, axis=1)
                x = jax.nn.silu(_time_conv(params, f"decoder.time_conv.{n}.conv", x))
            drawn, guide = jnp.split(x[:, :1] if picture else x, 2)
            out = _each_frame(
                lambda x, guide: vqgan.decoder(
                    params, x, functools.partial(_guided_norm, guide), heads=self.heads
                ),
                drawn,
                guide,
            )
        return out[:, 0] if picture else out

    def prepared(self, media: np.ndarray) -> np.ndarray:
        """uint8 pixels -> normalised float32 in the codec's height and width.

        Raises ValueError: another shape, dtype or number of frames.
        """
        pictures.check(media, 4 if self.kind == "video" else 3)
        frames = media if self.kind == "video" else media[None]
        if len(frames) != self.frames:
            raise ValueError(
                f"the clip has {len(frames)} frames, the codec takes {self.frames}."
            )
        size = (self.height, self.width, self.resample)
        out = pictures.normalised(
            self, np.stack([pictures.cropped(f, *size) for f in frames])
        )
        return out if self.kind == "video" else out[0]

    def any_size(self, media: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> normalised float32 [H, W, 3], as Emu3's HF processor.

        Sides are whole patches near the picture's own shape, min_pixels to max_pixels in
        all. Raises ValueError: another shape or dtype; one side over 200 times the other.
        """
        pictures.check(media, 3)
        limits = (self.patch, self.min_pixels, self.max_pixels)
        size = pictures.whole_patches(*media.shape[:2], *limits)
        return pictures.normalised(self, pictures.resized(media, *size, self.resample))

    def encode(self, params: Params, media: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3], or [frames, h, w, 3] -> codes [length]; see `prepared`."""
        pixels = self.prepared(media)[None]
        return np.asarray(self.codes(dict(params), pixels)).reshape(-1)

    def decode(self, params: Params, codes: np.ndarray) -> np.ndarray:
        """Codes [length], or a grid of another size -> uint8 pixels.

        Raises ValueError: another number of codes; one out of range.
        """
        codes = pictures.as_grid(self, codes)
        return pictures.painted(self, self.pixels(dict(params), codes[None])[0])


def from_hf(
    config: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    names: Iterable[str],
    prefix: str | None = None,
) -> tuple[Emu3VQ, dict[str, np.ndarray]]:
    """Codec (of pictures) and arrays of an emu3 or emu3_vqgan directory; see `vqgan`.

    For clips, `dataclasses.replace(codec, kind="video", frames=8)` takes the same arrays.
    """
    stored = vqgan.arrays(read, names, prefix)
    params = {}
    for name, value in stored.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        params[name] = value
    vq_config = config.get("vq_config", config)
    processor = config.get("image_processor") or {}
    limits = ("min_pixels", "max_pixels")
    codec = Emu3VQ(
        patch=2 ** (vqgan.count(params, "encoder.down") - 1),
        fold=2 ** vqgan.count(params, "encoder.time_conv"),
        size=len(params[vqgan.TABLE]),
        heads=vq_config.get("num_attention_heads", 1),
        **{key: processor[key] for key in limits if key in processor},
        **pictures.preprocessing(processor),
    )
    return codec, params


def _each_frame(net, *clips):
    """A net of [B, h, w, c] on every frame of [B, F, h, w, c], one after another."""
    frames = [jnp.moveaxis(clip, 1, 0) for clip in clips]
    return jnp.moveaxis(jax.lax.map(lambda each: net(*each), frames), 0, 1)


def _guided_norm(guide, params, name, x):
    """Group norm, scaled and shifted by rows of the table [B, h, w, D]."""
    by = x.shape[1] // guide.shape[1]

    def seen(part):
        return vqgan.enlarged(vqgan.conv(params, f"{name}.{part}", guide), by)

    x = vqgan.group_norm(params, f"{name}.norm_layer", x)
    return x * seen("conv_y") + seen("conv_b")


def _time_conv(params, name, x, stride=1):
    """A convolution of [B, F, h, w, c] that sees a frame and those before it."""
    side = vqgan.array(params, f"{name}.conv.weight").shape[-1] // 2
    pad = ((2, 0), (side, side), (side, side))
    return vqgan.conv(params, f"{name}.conv", x, (stride, 1, 1), pad)


def _time_stack(params, name, x):
    """Residual blocks over time, with batch norms as their training left them."""

    def norm(name, x):
        mean, var, scale, bias = (
            vqgan.array(params, f"{name}.{part}")
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias

    for n in range(vqgan.count(params, name)):
        y = x
        for m in (1, 2):
            y = jax.nn.silu(norm(f"{name}.{n}.norm{m}", y))
            y = _time_conv(params, f"{name}.{n}.conv{m}", y)
        x = x + y
    return x
