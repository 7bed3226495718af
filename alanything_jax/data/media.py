"""Media files to arrays and back: Pillow for pictures and GIFs, soundfile, PyAV.

Arrays are: image uint8 [height, width, 3]; audio float32 [samples] in -1..1 with its rate
in `meta["rate"]`; video uint8 [frames, height, width, 3] with `meta["fps"]`. Headers are
read before pixels, so that a limit is met before memory is. Pictures come as people see
them: turned as their EXIF says, what is transparent on white, of 16 bits the upper 8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from alanything_jax.data.whole import stated_size
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
# What is decoded at all: Pillow and FFmpeg know formats that run programs or open links.
_PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_FILMS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"


class MediaError(ValueError):
    """A medium that cannot be used; says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class MediaLimits:
    """What a single medium may hold at most.

    Attributes:
      max_pixels: of a picture or frame. max_frames, max_clip_pixels: of a clip, and of all
        its frames together; of longer ones every second frame is kept, or every fourth, ...
      max_seconds: of a sound, and of a clip, at 60 frames a second.
      rates: lowest and highest sampling rate, in Hz.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 4096 * 4096
    max_seconds: float = 600.0
    max_frames: int = 1024
    max_clip_pixels: int = 1 << 29
    rates: tuple[int, int] = (1000, 192_000)


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
    read = {"image": _image, "audio": _audio, "video": _video}[part.kind]
    with _told(f"the {part.kind} cannot be decoded"):
        return read(_bytes(part, limits), limits)


@contextlib.contextmanager
def _told(what):
    """Damaged files make decoders raise anything at all; here it becomes a MediaError."""
    try:
        yield
    except (MediaError, ImportError):
        raise
    except Exception as error:
        said = re.sub(r" ?<_io\.BytesIO[^>]*>", "", str(error)).strip(" .:")[:300]
        kind = type(error).__name__
        raise MediaError(f"{what} ({kind}{': ' if said else ''}{said}).") from error


def as_file(part: Part, max_bytes: int = 16 << 20) -> bytes:
    """A media part's file: its bytes, its array encoded, or the local file it names.

    Raises MediaError: there is none, it is too large, or the array cannot be encoded.
    """
    if not isinstance(part.data, np.ndarray):
        return _bytes(part, MediaLimits(max_bytes))
    if part.kind == "audio" and "rate" not in part.meta:
        raise MediaError('samples without meta["rate"]')
    known = {k: part.meta[k] for k in ("rate", "fps") if k in part.meta}
    with _told(f"the {part.kind}'s array cannot be encoded"):
        raw = dump(part.kind, part.data, **known)
    if len(raw) > max_bytes:
        raise MediaError(f"{len(raw)} bytes; at most {max_bytes} are taken")
    return raw


def _bytes(part, limits):
    if isinstance(part.data, bytes):
        raw = part.data
    elif isinstance(part.uri, str):
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

    Image.init()
    try:
        known = [name for name in _PICTURES if name in Image.OPEN]
        picture = Image.open(io.BytesIO(raw), formats=known)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{error} Allowed are {limits.max_pixels} pixels.") from error
    if picture.width * picture.height > limits.max_pixels:
        size = f"{picture.width} x {picture.height} pixels"
        raise MediaError(f"{size}; allowed are {limits.max_pixels}.")
    return picture


def _image(raw, limits):
    from PIL import ImageOps

    picture = _opened(raw, limits)
    ImageOps.exif_transpose(picture, in_place=True)
    return _rgb(picture), {}


def _rgb(picture):
    """[height, width, 3] uint8 of a Pillow image."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit grey; Pillow's own conversion makes all above 255 white.
        grey = np.asarray(picture)
        if picture.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise MediaError("grey values of 32 bits; give 8 or 16 bits.")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def _audio(raw, limits):
    import soundfile

    _check_whole(raw)
    with soundfile.SoundFile(io.BytesIO(raw)) as file, np.errstate(all="ignore"):
        rate, frames, (low, high) = file.samplerate, file.frames, limits.rates
        if not low <= rate <= high:
            raise MediaError(f"sound at {rate} Hz; allowed are {low} to {high} Hz.")
        if frames == 0 or frames > limits.max_seconds * rate:
            raise MediaError(
                f"{frames} samples at {rate} Hz; allowed are 1 sample to "
                f"{limits.max_seconds:.0f} s."
            )
        # In blocks: memory is for what is there, not for what the header says.
        size, blocks = (1 << 20) // file.channels, []
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    samples = np.concatenate([np.zeros(0, np.float32), *blocks])
    if len(samples) < frames:
        raise MediaError(f"cut off: {len(samples)} of {frames} samples.")
    return _finite(samples), {"rate": rate}


def _check_whole(raw):
    if (stated := stated_size(raw)) > len(raw):
        raise MediaError(f"cut off: {len(raw)} bytes of {stated}.")


def _finite(samples):
    if not np.isfinite(samples).all():
        raise MediaError("some samples are infinite or no numbers.")
    return samples


def _video(raw, limits):
    if raw[:4] == b"GIF8":
        return _gif(raw, limits)
    with _film(raw) as container:
        if not container.streams.video:
            raise MediaError("the file has no video stream.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise MediaError("the video cannot be decoded: its codec is not known.")
        fps = float(stream.average_rate or 0)
        _admit((stream.width, stream.height), limits)
        decoded = (
            ((f.width, f.height), functools.partial(f.to_ndarray, format="rgb24"))
            for f in container.decode(stream)
        )
        frames, stride = _thinned(decoded, limits)
    return _clip(frames), {"fps": fps / stride}


def _film(raw):
    """PyAV's container of a video file, which closes what it opened."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "videos other than GIF need PyAV: pip install 'alanything_jax[media]'."
        ) from error
    _check_whole(raw)
    return av.open(io.BytesIO(raw), options={"format_whitelist": _FILMS})


def audio_of(
    part: Part, limits: MediaLimits = MediaLimits()
) -> tuple[np.ndarray, dict] | None:
    """The sound of a video, as `load` returns audio; None where it has none (a GIF, an
    array, a silent film).

    Raises MediaError: as `load`.
    """
    if isinstance(part.data, np.ndarray):
        return None
    with _told("the video's sound cannot be decoded"):
        raw = _bytes(part, limits)
        return None if raw[:4] == b"GIF8" else _sound(raw, limits)


def _sound(raw, limits):
    pieces, total, (low, high) = [], 0, limits.rates
    with _film(raw) as container:
        from av import AudioResampler

        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        rate = stream.codec_context.sample_rate
        if not low <= rate <= high:
            raise MediaError(f"sound at {rate} Hz; allowed are {low} to {high} Hz.")
        floats = AudioResampler("fltp")  # whatever the file has: float, channels apart
        for frame in itertools.chain(container.decode(stream), [None]):
            for piece in floats.resample(frame):
                pieces.append(piece.to_ndarray().mean(axis=0))
                total += piece.samples
            if total > limits.max_seconds * rate:
                raise MediaError(f"sound of over {limits.max_seconds:.0f} s.")
    return (_finite(np.concatenate(pieces)), {"rate": rate}) if total else None


def _gif(raw, limits):
    from PIL import ImageSequence

    picture = _opened(raw, limits)
    if not raw.rstrip(b"\0").endswith(b";"):
        raise MediaError("the GIF is cut off: it does not end with its trailer.")
    decoded = (
        (frame.size, functools.partial(_rgb, frame))
        for frame in ImageSequence.Iterator(picture)
    )
    frames, stride = _thinned(decoded, limits)
    duration = picture.info.get("duration", 0) * stride
    return _clip(frames), {"fps": 1000 / duration if duration else 0.0}


def _thinned(decoded, limits):
    """Of frames ((width, height), make) every n-th, as many as there is room for; n.

    Raises MediaError: a frame is too large, or the clip too long to be decoded.
    """
    kept, stride, most = [], 1, int(60 * limits.max_seconds)
    for number, (size, make) in enumerate(decoded):
        if number >= most:
            raise MediaError(f"more than {most} frames (max_seconds, at 60 a second).")
        room = min(limits.max_frames, limits.max_clip_pixels // _admit(size, limits))
        while number % stride == 0 and len(kept) >= room:
            if room < 2:
                raise MediaError(f"no room for two of its frames in {limits}.")
            kept, stride = kept[::2], 2 * stride
        if number % stride == 0:
            kept.append(make())
    return kept, stride


def _admit(size, limits):
    """Pixels of a frame of (width, height). Raises MediaError: too many."""
    pixels = size[0] * size[1]
    if pixels > limits.max_pixels:
        raise MediaError(
            f"frames of {size[0]} x {size[1]} pixels; allowed are {limits.max_pixels}."
        )
    return max(1, pixels)


def _clip(frames):
    """[frames, height, width, 3] of frames alike."""
    sizes = sorted({frame.shape for frame in frames})
    if len(sizes) != 1:
        raise MediaError(
            f"frames of sizes {sizes}." if sizes else "the video has no frame."
        )
    return np.stack(frames)


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
