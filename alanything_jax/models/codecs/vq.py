"""A trainable codec of pictures and clips: patches, a small net, a table of codes.

VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937): each patch becomes a latent, and the
latent the nearest row of a table; its number is the code. The net back to patches reads
rows of the table only. Several tables quantize what the ones before left over (residual
VQ, arXiv:2107.03312).

What a trainable codec has beside `encode` and `decode`, for `pipelines.codec`; P values of
a patch, n patches of a medium, D width of a latent:

    specs() -> {path: ParamSpec}                  what `params` holds; all float32
    fit(media) -> media                           checked, resized; raises ValueError
    crop(media, rng) -> media                     a piece that `patches` takes
    patches(media) -> [n, P], mask [n]            float32 about -1..1; False = padding
    latents(params, patches [B, n, P], mask) -> [B, n, D]
    restored(params, latents [B, n, D], mask) -> [B, n, P]
    assembled(patches [n, P], mask [n]) -> media
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from alanything_jax.models import params as trees
from alanything_jax.models.params import ParamSpec

# Path of the tables of codes, [levels, size, D].
TABLE = "codebook/table"
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class VQ:
    """Pictures (`kind="image"`, frames=1) and clips (`kind="video"`) of one size.

    A picture of another size is resized; a clip has exactly its frames. Codes run frame
    by frame, row by row.

    Attributes:
      height, width: pixels that media are brought to. frames: of a clip.
      patch: pixels of the side that one code stands for.
      temporal: a code stands for a patch in two frames, not in one; an odd clip's last
        frame counts twice.
      size: number of codes. channels, depth: width and blocks of the nets.
      latent: width D of a row of the table.
    """

    kind: Literal["image", "video"] = "image"
    height: int = 64
    width: int = 64
    frames: int = 1
    patch: int = 8
    temporal: bool = False
    size: int = 256
    channels: int = 64
    depth: int = 2
    latent: int = 16

    stop: ClassVar = False
    frame: ClassVar = 1

    def __post_init__(self):
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"{self.height} x {self.width} pixels are no whole number of patches of "
                f"{self.patch}: give multiples."
            )
        if self.kind == "image" and (self.frames != 1 or self.temporal):
            raise ValueError("an image has frames=1 and temporal=False.")

    @property
    def _fold(self) -> int:
        """Frames that one code stands for."""
        return 2 if self.temporal else 1

    @property
    def _grid(self) -> dict[str, int]:
        """Codes of a medium along frames, rows and columns."""
        return {
            "f": -(-self.frames // self._fold),
            "r": self.height // self.patch,
            "c": self.width // self.patch,
        }

    @property
    def length(self) -> int:
        """Codes of a picture or clip."""
        return int(np.prod(list(self._grid.values())))

    def specs(self) -> dict[str, ParamSpec]:
        """What `params` holds."""
        values = 3 * self._fold * self.patch**2
        sizes = (self.channels, self.depth, 2)
        return {
            TABLE: ParamSpec((1, self.size, self.latent), (None,) * 3),
            **net_specs("encoder", values, self.latent, *sizes),
            **net_specs("decoder", self.latent, values, *sizes),
        }

    def fit(self, media: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3], or [frames, ...] of a clip, in the codec's size.

        Raises ValueError: another shape or dtype.
        """
        rank = 4 if self.kind == "video" else 3
        fits = media.ndim == rank and media.shape[-1] == 3 and 0 not in media.shape
        if not fits or media.dtype != np.uint8:
            axes = "frames, height, width, 3" if rank == 4 else "height, width, 3"
            raise ValueError(
                f"the {self.kind} is {media.dtype} {media.shape}, not uint8 [{axes}]."
            )
        if media.shape[-3:-1] == (self.height, self.width):
            return media
        from PIL import Image

        size = (self.width, self.height)
        frames = media.reshape(-1, *media.shape[-3:])
        resized = [
            Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in frames
        ]
        return np.stack([*map(np.asarray, resized)]).reshape(
            *media.shape[:-3], self.height, self.width, 3
        )

    def crop(self, media: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`frames` of a longer clip, from a random place; a picture as it is."""
        if self.kind == "image" or len(media) <= self.frames:
            return media
        start = int(rng.integers(len(media) - self.frames + 1))
        return media[start : start + self.frames]

    def patches(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels that fit -> float32 [length, P] in -1..1, and their mask: all True.

        Raises ValueError: a clip of more or fewer frames.
        """
        frames = media if self.kind == "video" else media[None]
        if len(frames) != self.frames:
            raise ValueError(
                f"the clip has {len(frames)} frames, the codec takes {self.frames}."
            )
        extra = -len(frames) % self._fold
        frames = np.concatenate([frames, *[frames[-1:]] * extra])
        out = rearrange(
            frames.astype(np.float32) / 127.5 - 1,
            "(f t) (r y) (c x) d -> (f r c) (t y x d)",
            t=self._fold,
            y=self.patch,
            x=self.patch,
        )
        return out, np.ones(self.length, bool)

    def assembled(self, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The inverse of `patches`, rounded to uint8."""
        del mask
        frames = rearrange(
            np.asarray(patches),
            "(f r c) (t y x d) -> (f t) (r y) (c x) d",
            t=self._fold,
            y=self.patch,
            x=self.patch,
            **self._grid,
        )
        pixels = np.clip(np.round((frames + 1) * 127.5), 0, 255).astype(np.uint8)
        return pixels[: self.frames] if self.kind == "video" else pixels[0]

    def latents(self, params: Params, patches: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, n, P] -> [B, n, D], each frame by itself."""
        return self._framewise(params, "encoder", patches, mask)

    def restored(
        self, params: Params, latents: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """[B, n, D] -> [B, n, P], each frame by itself."""
        return self._framewise(params, "decoder", latents, mask)

    def _framewise(self, params, name, x, mask):
        del mask
        x = rearrange(x, "b (f r c) d -> (b f) r c d", **self._grid)
        x = net(params, name, x, jnp.ones(x.shape[:-1], bool))
        return rearrange(x, "(b f) r c d -> b (f r c) d", f=self._grid["f"])

    def encode(self, params: Params, media: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3], or [frames, ...] of a clip -> codes [length].

        Raises ValueError: another shape, dtype or number of frames; missing arrays.
        """
        patches, mask = self.patches(self.fit(media))
        return encoded(self, params, patches, mask).reshape(-1)

    def decode(self, params: Params, codes: np.ndarray) -> np.ndarray:
        """Codes [length] -> uint8 pixels in the codec's size."""
        codes = np.asarray(codes)
        if codes.shape != (self.length,):
            raise ValueError(f"{codes.shape} codes; the codec has {self.length}.")
        mask = np.ones(self.length, bool)
        return self.assembled(decoded(self, params, codes[:, None], mask), mask)


def net_specs(
    name: str, inputs: int, outputs: int, channels: int, depth: int, rank: int
) -> dict[str, ParamSpec]:
    """The arrays of a `net` over a grid of `rank` dims."""

    def layer(path, kernel, fan_in):
        return {
            f"{path}/kernel": ParamSpec(kernel, (None,) * len(kernel), fan_in=fan_in),
            f"{path}/bias": ParamSpec(kernel[-1:], (None,), "zeros"),
        }

    out = layer(f"{name}/in", (inputs, channels), inputs)
    for n in range(depth):
        near = (3,) * rank + (channels, channels)
        out |= layer(f"{name}/{n}/near", near, 3**rank * channels)
        # Residual branches begin small, the more of them the smaller.
        out |= layer(f"{name}/{n}/out", (channels, channels), 4 * depth * channels)
    return out | layer(f"{name}/out", (channels, outputs), channels)


def net(params: Params, name: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Residual blocks of a 3-wide convolution and gelu between two dense layers.

    Args:
      x: [B, *grid, inputs], one or two dims of a grid. mask: [B, *grid]; what is False
        is as good as not there.

    Returns:
      [B, *grid, outputs], 0 where the mask is False.
    """

    def layer(path, x):
        kernel, bias = params[f"{path}/kernel"], params[f"{path}/bias"]
        if kernel.ndim == 2:
            return x @ kernel + bias
        grid = "HW"[: kernel.ndim - 2]
        names = (f"N{grid}C", f"{grid}IO", f"N{grid}C")
        ones = (1,) * len(grid)
        return bias + jax.lax.conv_general_dilated(
            x, kernel, ones, "SAME", dimension_numbers=names
        )

    def kept(x):
        return jnp.where(mask[..., None], x, 0.0)

    depth = sum(path.startswith(f"{name}/") for path in params) // 4 - 1
    x = kept(layer(f"{name}/in", kept(x)))
    for n in range(depth):
        near = jax.nn.gelu(layer(f"{name}/{n}/near", x))
        x = x + kept(layer(f"{name}/{n}/out", near))
    return kept(layer(f"{name}/out", x))


def quantize(
    table: jax.Array, latents: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The nearest row of each level's table to what the levels before it left over.

    Args:
      table: [levels, size, D]. latents: [..., D].

    Returns:
      codes [..., levels] int32; the sum of their rows [..., D]; what each level was
      given [..., levels, D]. No gradient flows.
    """
    latents, table = jax.lax.stop_gradient((latents, table))
    rest, codes, given = latents, [], []
    for rows in table:
        # |a - b|^2 without |a|^2, which all rows share.
        cross = jnp.matmul(rest, rows.T, precision=jax.lax.Precision.HIGHEST)
        codes.append(jnp.argmin(jnp.square(rows).sum(-1) - 2 * cross, axis=-1))
        given.append(rest)
        rest = rest - rows[codes[-1]]
    codes = jnp.stack(codes, axis=-1).astype(jnp.int32)
    return codes, looked_up(table, codes), jnp.stack(given, axis=-2)


def looked_up(table: jax.Array, codes: jax.Array) -> jax.Array:
    """Codes [..., levels] -> the sum [..., D] of their rows in table [levels, size, D]."""
    return sum(rows[codes[..., n]] for n, rows in enumerate(table))


def initial(codec: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Random arrays of a trainable codec."""
    return trees.flatten(trees.init(trees.unflatten(codec.specs()), key))


def encoded(
    codec: Any, params: Params, patches: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Patches [n, P] -> codes [n, levels] int32.

    Raises ValueError: `params` are not the codec's.
    """
    _check_params(codec, params)
    return np.asarray(_encoded(codec, dict(params), patches[None], mask[None]))[0]


def decoded(
    codec: Any, params: Params, codes: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Codes [n, levels] -> patches [n, P].

    Raises ValueError: a code out of range; `params` are not the codec's.
    """
    _check_params(codec, params)
    if codes.size and not 0 <= codes.min() <= codes.max() < codec.size:
        raise ValueError(
            f"codes {codes.min()} .. {codes.max()}; the codec has 0 .. {codec.size - 1}."
        )
    return np.asarray(_decoded(codec, dict(params), codes[None], mask[None]))[0]


@functools.partial(jax.jit, static_argnums=0)
def _encoded(codec, params, patches, mask):
    return quantize(params[TABLE], codec.latents(params, patches, mask))[0]


@functools.partial(jax.jit, static_argnums=0)
def _decoded(codec, params, codes, mask):
    return codec.restored(params, looked_up(params[TABLE], codes), mask)


def _check_params(codec, params):
    wanted = {path: spec.shape for path, spec in codec.specs().items()}
    given = {path: tuple(value.shape) for path, value in params.items()}
    if wanted != given:
        wrong = sorted(p for p in {*wanted, *given} if wanted.get(p) != given.get(p))
        raise ValueError(
            f"the {codec.kind} codec was given other arrays than its own; {wrong[:4]} "
            "are missing, unknown or misshaped. Give those that were trained for it "
            "(`codec.safetensors` of its run)."
        )
