"""Media files to arrays and back: Pillow for pictures and GIFs, soundfile, PyAV.

Arrays are: image uint8 [height, width, 3]; audio float32 [samples] in -1..1 with its rate
in `meta["rate"]`; video uint8 [frames, height, width, 3] with `meta["fps"]`. Headers are
read before pixels, so that a limit is met before memory is.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.schema import Part

# Files that browsers show: (offset, first bytes) -> (type, ending).
_FILES = {
    (0, b"\x89PNG"): ("image/png", ".png"),
    (0, b"\xff\xd8\xff"): ("image/jpeg", ".jpg"),
    (0, b"GIF8"): ("image/gif", ".gif"),
    (8, b"WEBP"): ("image/webp", ".webp"),
    (8, b"WAVE"): ("audio/wav", ".wav"),
    (0, b"fLaC"): ("audio/flac", ".flac"),
    (0, b"ID3"): ("audio/mpeg", ".mp3"),
    (0, b"\xff\xfb"): ("audio/mpeg", ".mp3"),
    (0, b"\xff\xf3"): ("audio/mpeg", ".mp3"),
    (0, b"OggS"): ("audio/ogg", ".ogg"),
    (4, b"ftyp"): ("video/mp4", ".mp4"),
    (0, b"\x1aE\xdf\xa3"): ("video/webm", ".webm"),
}


class MediaError(ValueError):
    """A medium that cannot be used; says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class MediaLimits:
    """What a single medium may hold at most."""

    max_bytes: int = 64 << 20
    max_pixels: int = 4096 * 4096
    max_seconds: float = 600.0
    max_frames: int = 1024


def mime_of(raw: bytes) -> str | None:
    """The type of a file that browsers show, by its first bytes; None for others."""
    return _file_type(raw)[0]


def suffix_of(raw: bytes) -> str:
    """The ending of its name, such as ".png".

    Raises MediaError: none of the formats that browsers show.
    """
    if (suffix := _file_type(raw)[1]) is None:
        known = ", ".join(sorted({suffix for _, suffix in _FILES.values()}))
        raise MediaError(f"a file beginning {raw[:8]!r}; browsers show {known}.")
    return suffix


def _file_type(raw):
    found = (f for (at, mark), f in _FILES.items() if raw[at : at + len(mark)] == mark)
    return next(found, (None, None))


def load(part: Part, limits: MediaLimits = MediaLimits()) -> tuple[np.ndarray, dict]:
    """The array of a media part, and what is known of it (`rate`, `fps`).

    Raises MediaError: no data, over a limit, truncated, or not of the part's kind.
    """
    if isinstance(part.data, np.ndarray):
        return part.data, dict(part.meta)
    raw = _bytes(part, limits)
    try:
        read = {"image": _image, "audio": _audio, "video": _video}[part.kind]
        return read(raw, limits)
    except MediaError:
        raise
    except (OSError, ValueError, SyntaxError, RuntimeError, EOFError) as error:
        raise MediaError(
            f"the {part.kind} cannot be decoded ({type(error).__name__}: {error})."
        ) from error


def as_file(part: Part, max_bytes: int = 16 << 20) -> bytes:
    """A media part's file: its bytes, its array encoded, or the local file it names.

    Raises MediaError: there is none, it is too large, or the array cannot be encoded.
    """
    if not isinstance(part.data, np.ndarray):
        return _bytes(part, MediaLimits(max_bytes))
    if part.kind == "audio" and "rate" not in part.meta:
        raise MediaError('samples without meta["rate"]')
    known = {k: part.meta[k] for k in ("rate", "fps") if k in part.meta}
    if len(raw := dump(part.kind, part.data, **known)) > max_bytes:
        raise MediaError(f"{len(raw)} bytes; at most {max_bytes} are taken")
    return raw


def _bytes(part, limits):
    if isinstance(part.data, bytes):
        raw = part.data
    elif part.uri is not None:
        path = Path(part.uri.removeprefix("file://"))
        if "://" in str(part.uri).removeprefix("file://"):
            raise MediaError(f"{part.uri}: only local files are read.")
        if not path.is_file():
            raise MediaError(f"no file at {path}.")
        if path.stat().st_size > limits.max_bytes:
            raise MediaError(f"{path} is larger than {limits.max_bytes} bytes.")
        raw = path.read_bytes()
    else:
        raise MediaError(f"the {part.kind} part has neither data nor a path.")
    if not raw or len(raw) > limits.max_bytes:
        raise MediaError(f"{len(raw)} bytes; allowed are 1 to {limits.max_bytes}.")
    return raw


def _opened(raw, limits):
    """A Pillow image whose declared size is within the limit."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(raw))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{error} Allowed are {limits.max_pixels} pixels.") from error
    if picture.width * picture.height > limits.max_pixels:
        size = f"{picture.width} x {picture.height} pixels"
        raise MediaError(f"{size}; allowed are {limits.max_pixels}.")
    return picture


def _image(raw, limits):
    picture = _opened(raw, limits)
    if picture.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion makes all above 255 white.
        grey = (np.asarray(picture).astype(np.int32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1), {}
    return np.asarray(picture.convert("RGB")), {}


def _audio(raw, limits):
    import soundfile

    with soundfile.SoundFile(io.BytesIO(raw)) as file:
        if file.frames == 0 or file.frames > limits.max_seconds * file.samplerate:
            raise MediaError(
                f"{file.frames} samples at {file.samplerate} Hz; allowed are 1 sample to "
                f"{limits.max_seconds:.0f} s."
            )
        samples = file.read(dtype="float32", always_2d=True)
        return samples.mean(axis=1), {"rate": file.samplerate}


def _video(raw, limits):
    if raw[:4] == b"GIF8":
        return _gif(raw, limits)
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "videos other than GIF need PyAV: pip install 'alanything_jax[media]'."
        ) from error
    try:
        return _film(av.open(io.BytesIO(raw)), limits)
    except av.FFmpegError as error:
        raise MediaError(
            f"the video cannot be decoded ({type(error).__name__}: {error})."
        ) from error


def _film(opened, limits):
    frames, fps = [], 0.0
    with opened as container:
        if not container.streams.video:
            raise MediaError("the file has no video stream.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise MediaError("the video cannot be decoded: its codec is not known.")
        if stream.width * stream.height > limits.max_pixels:
            raise MediaError(f"frames of {stream.width} x {stream.height} pixels.")
        fps = float(stream.average_rate or 0)
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) > limits.max_frames:
                raise MediaError(f"more than {limits.max_frames} frames.")
    if not frames:
        raise MediaError("the video has no frame.")
    return np.stack(frames), {"fps": fps}


def _gif(raw, limits):
    picture = _opened(raw, limits)
    count = getattr(picture, "n_frames", 1)
    if count > limits.max_frames:
        raise MediaError(f"{count} frames; allowed are {limits.max_frames}.")
    frames = []
    for number in range(count):
        picture.seek(number)
        frames.append(np.asarray(picture.convert("RGB")))
    duration = picture.info.get("duration", 0)
    return np.stack(frames), {"fps": 1000 / duration if duration else 0.0}


def dump(kind: str, array: np.ndarray, **meta: Any) -> bytes:
    """A PNG, WAV or GIF of an array; a GIF keeps up to 256 colours exactly, and takes
    the nearest of 256 where there are more.

    Args:
      kind: image, audio or video.
      meta: `rate` of audio in Hz, `fps` of video.
    """
    out = io.BytesIO()
    if kind == "audio":
        import soundfile

        soundfile.write(out, array, int(meta["rate"]), format="WAV", subtype="PCM_16")
        return out.getvalue()
    if kind == "video":
        return _dump_gif(array, meta.get("fps", 2))
    from PIL import Image

    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def _dump_gif(array, fps):
    """Frame by frame: Pillow's `save_all` would merge frames that are equal."""
    from PIL import GifImagePlugin, Image

    packed = array.astype(np.uint32)
    packed = packed[..., 0] << 16 | packed[..., 1] << 8 | packed[..., 2]
    colours, index = np.unique(packed, return_inverse=True)
    if not len(array):
        raise MediaError("the clip has no frame.")
    rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1)
    if len(colours) > 256:
        tall = Image.fromarray(array.reshape(-1, *array.shape[2:])).quantize(256)
        rgb, index = np.array(tall.getpalette()), np.asarray(tall)
    frames = []
    for frame in index.reshape(array.shape[:3]).astype(np.uint8):
        picture = Image.fromarray(frame, mode="P")
        picture.putpalette(rgb.astype(np.uint8).tobytes())
        frames.append(picture)
    header, _ = GifImagePlugin.getheader(frames[0], None, {"loop": 0})
    options = {"duration": round(1000 / fps), "disposal": 1}
    data = [GifImagePlugin.getdata(frame, **options) for frame in frames]
    return b"".join([*header, *(piece for pieces in data for piece in pieces), b";"])


# Endings of files by kind; SUFFIX is what `dump` writes.
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a"),
    "video": (".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi"),
}
SUFFIX = {"image": ".png", "audio": ".wav", "video": ".gif"}
