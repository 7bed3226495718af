"""An exact codec of pictures and clips made of cells: one code a cell.

A frame is a grid of cells, each empty or holding one shape in one colour. Code 0 is the
empty cell, 1 + colour * shapes + shape the others. Decoding paints the cells; encoding
takes for each cell the nearest painted one, so that any lossless file comes back exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
from einops import rearrange

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 92, 204),
    "yellow": (240, 196, 25),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (250, 248, 244)
SIZE = 1 + len(COLOURS) * len(SHAPES)
# Mean squared difference of a pixel above which a cell is none of ours.
TOLERANCE = 900.0


@dataclasses.dataclass(frozen=True)
class Palette:
    """Grid pictures (`kind="image"`, frames=1) and clips (`kind="video"`).

    Attributes:
      rows, columns: cells of a frame. frames: of a clip. pixels: of a cell's side.
    """

    kind: Literal["image", "video"] = "image"
    rows: int = 4
    columns: int = 4
    frames: int = 1
    pixels: int = 16

    @property
    def size(self) -> int:
        """Number of codes."""
        return SIZE

    @property
    def length(self) -> int:
        """Codes of a picture or clip."""
        return self.frames * self.rows * self.columns

    stop = False
    frame = 1

    def encode(self, params: dict[str, Any], media: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3], or [frames, ...] of a clip -> codes [length].

        Raises ValueError: other size, or a cell that is none of the painted ones.
        """
        del params
        frames = media if self.kind == "video" else media[None]
        shape = (self.frames, self.rows * self.pixels, self.columns * self.pixels, 3)
        if frames.shape != shape:
            raise ValueError(f"the {self.kind} is {frames.shape}, the codec's {shape}.")
        cells = rearrange(
            frames.astype(np.float32),
            "f (r y) (c x) d -> (f r c) (y x d)",
            y=self.pixels,
            x=self.pixels,
        )
        known = sprites(self.pixels).reshape(SIZE, -1).astype(np.float32)
        # |a - b|^2 = |a|^2 - 2 a b + |b|^2, divided by the number of values.
        gaps = np.square(cells).sum(1)[:, None] - 2 * cells @ known.T
        gaps = (gaps + np.square(known).sum(1)) / cells.shape[1]
        if (worst := gaps.min(axis=1).max()) > TOLERANCE:
            raise ValueError(
                f"a cell of the {self.kind} differs from every painted one by {worst:.0f} "
                f"(mean squared), more than {TOLERANCE:.0f}."
            )
        return gaps.argmin(axis=1).astype(np.int32)

    def decode(self, params: dict[str, Any], codes: np.ndarray) -> np.ndarray:
        """Codes [length] -> uint8 pixels, as `encode` takes them."""
        del params
        painted = sprites(self.pixels)[np.asarray(codes)]
        frames = rearrange(
            painted,
            "(f r c) y x d -> f (r y) (c x) d",
            f=self.frames,
            r=self.rows,
            c=self.columns,
        )
        return frames if self.kind == "video" else frames[0]


@functools.cache
def sprites(pixels: int) -> np.ndarray:
    """uint8 [SIZE, pixels, pixels, 3]: every cell painted."""
    y, x = (np.mgrid[:pixels, :pixels] + 0.5) / pixels * 2 - 1
    masks = {
        "circle": x**2 + y**2 < 0.62,
        "square": (np.abs(x) < 0.68) & (np.abs(y) < 0.68),
        "triangle": (y < 0.7) & (np.abs(x) < (y + 0.8) * 0.55),
    }
    out = np.empty((SIZE, pixels, pixels, 3), np.uint8)
    out[:] = BACKGROUND
    for c, colour in enumerate(COLOURS.values()):
        for s, shape in enumerate(SHAPES):
            out[1 + c * len(SHAPES) + s][masks[shape]] = colour
    return out
