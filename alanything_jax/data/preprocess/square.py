"""Pictures of one fixed size: CLIP (LLaVA-1.5) and SigLIP (Gemma3, Janus)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from alanything_jax.data.media import MediaLimits
from alanything_jax.data.preprocess import images
from alanything_jax.data.preprocess.images import Look
from alanything_jax.schema import Medium


@dataclasses.dataclass(frozen=True)
class SquareVision:
    """From config.json: `image_size`, `patch_size`, `pool`, `class_token`, `keep_class`.

    Attributes:
      image_size, patch_size: pixels of a side.
      pool: pool x pool patches are averaged to one output.
      class_token: the encoder has a place before the patches; `keep_class`: it is an
        output too.
      fit: how a picture becomes square. "stretch"; "crop": the middle, after its short
        side is at `edge`; "pad": mean colour around it, then "crop"; "inside": its long
        side at the size (none below `least`), then mean colour around it.
      edge: see "crop"; None = image_size.
    """

    image_size: int
    patch_size: int
    pool: int = 1
    class_token: bool = False
    keep_class: bool = False
    fit: Literal["stretch", "crop", "pad", "inside"] = "stretch"
    edge: int | None = None
    least: int = 14
    look: Look = Look()

    def __post_init__(self):
        side = self.image_size // self.patch_size
        if self.image_size % self.patch_size or side % self.pool:
            raise ValueError(
                f"image_size {self.image_size} holds no whole number of patches of "
                f"{self.patch_size}, {self.pool} to a pooled output. Change one of them."
            )
        if self.edge is not None and self.edge < self.image_size:
            raise ValueError(
                f"a short side of {self.edge} is smaller than the crop of "
                f"{self.image_size}; make it as large."
            )


def medium(
    settings: SquareVision,
    array: np.ndarray,
    meta: Mapping[str, Any],
    limits: MediaLimits = MediaLimits(),
) -> Medium:
    """A picture, uint8 [h, w, 3]. Raises MediaError: over a limit, or no picture."""
    images.check(array, limits)
    square = images.normalise(_fitted(settings, array, limits), settings.look)
    return mediums_of_pixels(settings, square[None])[0]


def _fitted(settings, image, limits):
    """uint8 [image_size, image_size, 3]."""
    size, look = settings.image_size, settings.look
    if settings.fit == "stretch":
        return images.resize(image, (size, size), look.resample)
    if settings.fit == "inside":
        inside = images.long_side(*image.shape[:2], size, settings.least)
        image = images.resize(image, inside, look.resample)
        return images.pad_to_square(image, look.mean)
    if settings.fit == "pad":
        images.check_pixels(*[max(image.shape[:2])] * 2, limits)
        image = images.pad_to_square(image, look.mean)
    shape = images.short_side(*image.shape[:2], settings.edge or size)
    images.check_pixels(*shape, limits)
    return images.centre_crop(images.resize(image, shape, look.resample), size)


def mediums_of_pixels(settings: SquareVision, pixel_values: np.ndarray) -> list[Medium]:
    """Of an HF image processor's `pixel_values` [N, 3, image_size, image_size].

    Raises ValueError: another shape.
    """
    values = np.asarray(pixel_values, np.float32)
    size, patch = settings.image_size, settings.patch_size
    if values.ndim != 4 or values.shape[1:] != (3, size, size):
        raise ValueError(
            f"pixel_values {values.shape}; this model takes [N, 3, {size}, {size}]."
        )
    side = size // patch
    place = images.places(side, side, settings.pool) @ np.array([side, 1], np.int32)
    if settings.class_token:
        place = np.append(np.int32(0), place + 1)
    first = int(settings.class_token and not settings.keep_class)
    outputs = np.arange(first, len(place) // settings.pool**2, dtype=np.int32)
    segment = np.ones(len(place), np.int32)
    mediums = []
    for picture in values:
        patches = images.patchify(picture[None], patch, settings.pool)
        if settings.class_token:
            patches = np.pad(patches, ((1, 0), (0, 0)))
        arrays = {"patches": patches, "position": place, "segment": segment}
        mediums.append(Medium("image", "vision", arrays, outputs))
    return mediums
