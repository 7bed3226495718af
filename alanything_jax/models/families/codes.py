"""Families whose pictures are codes of a frozen codec: of their vocabulary, or drawn.

The codec's tensors lie in the model's checkpoint. They are never trained, so they are no
parameters: export passes them through, and `Model.codes` has them, ready to use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from alanything_jax.data.coder import Coder
from alanything_jax.models import inputs
from alanything_jax.models.config import DecoderConfig
from alanything_jax.models.grammar import Block, Grammar
from alanything_jax.schema import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """A codec of pictures and its arrays; where codes are ids, which.

    Attributes:
      codec: of `models.codecs`. params: its arrays, float32.
      ids: [size] int32, the id of each code; None where the vocabulary has none.
      placeholder: id that stands once for each id of a picture.
      row_end: id that stands behind each row of codes; None = none does.
    """

    codec: Any
    params: Mapping[str, np.ndarray]
    ids: np.ndarray | None = None
    placeholder: int | None = None
    row_end: int | None = None

    def of_pixels(
        self, pixels: np.ndarray, sizes: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The ids of each picture, int32 [n], rows one after another.

        Args:
          pixels: [N, 3, H, W], normalised. sizes: [N, 2], the height and width in pixels
            that are no padding.

        Raises ValueError: codes have no ids, or `sizes` another shape.
        """
        if self.ids is None:
            raise ValueError(
                "config.json has no vocabulary_map that says which ids are codes of "
                "pictures: give that of the base model."
            )
        if sizes is not None and np.shape(sizes) != (len(pixels), 2):
            raise ValueError(
                f"image_sizes {np.shape(sizes)} for {len(pixels)} pictures: give [N, 2]."
            )
        at = np.moveaxis(np.asarray(pixels, np.float32), 1, -1)
        grids = np.asarray(self.codec.codes(dict(self.params), at))
        out = []
        for n, grid in enumerate(grids):
            if sizes is not None:
                height, width = np.asarray(sizes)[n] // self.codec.patch
                grid = grid[:height, :width]
            rows = self.ids[grid]
            if self.row_end is not None:
                rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=self.row_end)
            out.append(rows.reshape(-1))
        return out


def numbered(found: Mapping[int, int], size: int) -> np.ndarray | None:
    """[size] ids of codes, from code -> id; None where no code has one.

    A code without an id has 0, as transformers has it.
    """
    if not found:
        return None
    out = np.zeros(max(size, *(code + 1 for code in found)), np.int32)
    out[list(found)] = list(found.values())
    return out


def with_pictures(
    cfg: DecoderConfig, arrays: Mapping[str, np.ndarray], codes: Codes | None
) -> Batch:
    """Of `input_ids`, `attention_mask` [B, T], `pixel_values` [N, 3, H, W] and, where
    pictures are padded to one size, `image_sizes` [N, 2].

    The ids of pictures stand, in order, where the placeholders are.

    Raises ValueError: pictures and placeholders do not fit; there is no codec.
    """
    del cfg
    tokens, real = inputs.tokens_of(arrays, ("pixel_values", "image_sizes"))
    if "pixel_values" in arrays:
        if codes is None:
            raise ValueError(
                "pixel_values need the codec of a checkpoint: load the model by hub.load, "
                "or give the pictures' ids in input_ids."
            )
        found = codes.of_pixels(arrays["pixel_values"], arrays.get("image_sizes"))
        places = np.nonzero(tokens == codes.placeholder)
        new = np.concatenate([np.zeros(0, np.int32), *found])
        if len(places[0]) != len(new):
            raise ValueError(
                f"{len(places[0])} placeholders (token {codes.placeholder}) for pictures of "
                f"{[len(ids) for ids in found]} ids."
            )
        tokens = tokens.copy()
        tokens[places] = new
    return inputs.plain_batch(tokens, real)


def coder(
    tokenizer: Any,
    cfg: DecoderConfig,
    codes: Codes,
    codec: Any,
    opener: str,
    mark: str,
    start: int | None,
    **block: Any,
) -> Coder | None:
    """The coder of a family that reads and writes pictures as ids of its vocabulary.

    Args:
      codec: `codes.codec`, for pictures of one size.
      opener: the token that opens a picture. mark: what stands for one in the family's
        chat templates; where a template does not write it, the opener stands there.
      start: as in `data.coder.Coder`.
      block: `before`, `after`, `row`, `row_end` of `models.grammar.Block`.

    None where codes have no ids, or such as are no run of the vocabulary's: a grammar
    needs one.
    """
    if codes.ids is None:
        return None
    first, size = int(codes.ids.min()), codec.size
    order = codes.ids - first
    if sorted(order) != list(range(size)):
        return None
    open_id = tokenizer.convert_tokens_to_ids(opener)
    kind = Block("image", open_id, first, size, codec.length, **block)
    text_size = first if first + size >= cfg.vocab_size else cfg.vocab_size
    typed = mark in (tokenizer.chat_template or "")
    return Coder(
        Grammar(text_size, (kind,)),
        {"image": mark if typed else opener},
        {"image": codec},
        {"image": dict(codes.params)},
        order={"image": order},
        start=start,
        marks={"image": codes.placeholder} if typed else {},
    )


def known(tokenizer: Any, *tokens: str) -> bool:
    """Whether a tokenizer has all of them: those made for tests may not."""
    return set(tokens) <= set(tokenizer.get_vocab())
