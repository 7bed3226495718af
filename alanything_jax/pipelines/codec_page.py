"""How well a trained codec does on held-out media: figures, and a page to look at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alanything_jax.data import media
from alanything_jax.data.files import write_aside

_NAMES = {"image": "PSNR", "video": "PSNR", "audio": "SNR"}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #222; background: #fff }}
main {{ display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }}
section {{ border: 1px solid #ddd; border-radius: 8px; padding: .8rem }}
figure {{ display: inline-block; margin: 0 .4rem 0 0 }}
img {{ width: 8rem; image-rendering: pixelated; display: block }}
audio {{ width: 16rem; display: block }}
figcaption, p small {{ color: #666; font-size: .85rem }}
</style><h1>{title}</h1><p>{about}</p><main>
{cards}
</main></html>
"""


def restored(codec: Any, params: Any, item: np.ndarray) -> np.ndarray:
    """A medium through its codes and back, of the length it had."""
    out = codec.decode(params, codec.encode(params, item))
    return out[: len(item)]


def decibels(kind: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """PSNR of pixels, SNR of samples, over all (original, copy) pairs together."""
    error = count = power = 0.0
    for original, copy in pairs:
        gaps = original.astype(np.float64) - copy.astype(np.float64)
        error, count = error + np.square(gaps).sum(), count + gaps.size
        power += np.square(original.astype(np.float64)).sum()
    signal = power if kind == "audio" else 255.0**2 * count
    # Equal to the last bit: 120 dB stands for infinity, which JSON lacks.
    return float(10 * np.log10(max(signal, 1e-12) / max(error, signal * 1e-12, 1e-24)))


def figures(codec: Any, params: Any, items: Sequence[np.ndarray]) -> dict[str, float]:
    """`psnr_db` or `snr_db`, and `perplexity` and `used` share of the codes.

    Perplexity and share are means over a frame's codebooks. Media that are longer than
    the codec takes count by their beginning.
    """
    params = jax.device_get(params)
    items = [_beginning(codec, item) for item in items]
    pairs = [(item, restored(codec, params, item)) for item in items]
    name = f"{_NAMES[codec.kind].lower()}_db"
    codes = np.concatenate([codec.encode(params, item) for item in items])
    levels = codes.reshape(-1, codec.frame).T
    counts = np.stack([np.bincount(level, minlength=codec.size) for level in levels])
    used = {name: float(value) for name, value in usage(counts).items()}
    return {name: decibels(codec.kind, pairs)} | used


def usage(counts: jax.Array) -> dict[str, jax.Array]:
    """Perplexity of the codes and the share of them in use, means over levels.

    Args:
      counts: [levels, size].
    """
    share = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)
    entropy = -jax.scipy.special.xlogy(share, share).sum(-1)
    return {"perplexity": jnp.exp(entropy).mean(), "used": (counts > 0).mean()}


class _First:
    """Stands for a random generator where the beginning is wanted."""

    def integers(self, high):
        del high
        return 0


def _beginning(codec, item):
    return codec.crop(item, _First())


def write(
    path: Path,
    title: str,
    trained: tuple[Any, Any],
    items: Sequence[np.ndarray],
    shown: int,
) -> str:
    """Write the page: originals beside reconstructions, and what the figures are.

    Args:
      trained: the codec and its params. items: held-out media; the first are shown.

    Returns the figures in a line.
    """
    codec, params = trained
    said = "nothing was held out"
    if items:
        found = figures(codec, params, items)
        name = _NAMES[codec.kind]
        said = (
            f"{name} {found[name.lower() + '_db']:.1f} dB, codebook perplexity "
            f"{found['perplexity']:.1f} of {codec.size}, {found['used']:.0%} of the codes "
            f"used, over {len(items)} media"
        )
    about = (
        f"{codec.size} codes, {codec.length} to a medium"
        f"{' at most' if codec.stop else ''}. Held-out: {said}. First the original, "
        "in the codec's size, then what its codes give back."
    )
    cards = []
    for item in items[:shown]:
        item = _beginning(codec, item)
        copy = restored(codec, params, item)
        value = decibels(codec.kind, [(item, copy)])
        pair = (item, "original"), (copy, f"{value:.1f} dB")
        sides = [
            f"<figure>{_tag(codec, side)}<figcaption>{words}</figcaption></figure>"
            for side, words in pair
        ]
        cards.append(f"<section>{''.join(sides)}</section>")
    page = {"title": html.escape(title), "about": html.escape(about)}
    page = _PAGE.format(**page, cards="\n".join(cards))
    write_aside(path, page)
    return said


def _tag(codec, item):
    """An <img> or <audio> with the medium inside."""
    if codec.kind == "audio":
        raw = media.dump("audio", item, rate=codec.rate)
        return f'<audio controls src="{_uri("audio/wav", raw)}"></audio>'
    raw = media.dump("image", item) if codec.kind == "image" else _animated(item)
    return f'<img alt="{codec.kind}" src="{_uri("image/png", raw)}">'


def _animated(frames):
    """An animated PNG: unlike a GIF it keeps every colour."""
    from PIL import Image

    out = io.BytesIO()
    first, *rest = map(Image.fromarray, frames)
    first.save(out, "PNG", save_all=True, append_images=rest, duration=500, loop=0)
    return out.getvalue()


def _uri(kind, raw):
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
