"""Damaged media files: an array within the limits, or a MediaError; nothing else comes out.

`python -m tests.data.test_fuzz_media 10000` (`make fuzz`) tries more, and counts.
"""

import collections
import faulthandler
import io
import re
import resource
import signal
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from alanything_jax.data import media
from alanything_jax.schema import Part

LIMITS = media.MediaLimits(1 << 20, 1 << 20, 60.0, 32, max_clip_pixels=1 << 22)
DEADLINE_S, MAX_GROWTH_KIB = 10, 512 << 10
ROWS, COLUMNS = np.mgrid[:48, :64]
PICTURE = np.stack([3 * ROWS, 4 * COLUMNS, ROWS * COLUMNS], -1).astype(np.uint8)
WAVE = np.sin(np.arange(4000) ** 1.3 / 50).astype(np.float32) / 2


class Hang(BaseException):
    """No Exception: nothing on the way may catch it."""


def pictures():
    """(ending, file) of what Pillow writes."""
    rgb = Image.fromarray(PICTURE)
    grey = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 200)
    film = [rgb, rgb.rotate(90), rgb.transpose(0)]
    more = {"save_all": True, "append_images": film[1:], "duration": 200}
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending, picture, options in (
        ("png", rgb, {}),
        ("png", rgb.convert("RGBA"), {}),
        ("png", rgb.quantize(16), {"transparency": 3}),
        ("png", grey, {}),
        ("png", rgb, more),
        ("jpeg", rgb, {"exif": exif}),
        ("jpeg", rgb, {"progressive": True}),
        ("jpeg", rgb.convert("CMYK"), {}),
        ("gif", rgb, {}),
        ("gif", rgb, more),
        ("webp", rgb, {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True}),
        ("webp", rgb, more),
        ("bmp", rgb, {}),
        ("tiff", grey, {}),
        ("tiff", rgb, {"compression": "tiff_lzw"}),
    ):
        out = io.BytesIO()
        picture.save(out, ending, **options)
        yield ending, out.getvalue()


def sounds():
    """(ending, file) of what libsndfile writes."""
    import soundfile

    for ending, kind, stereo in (
        ("wav", "PCM_16", False),
        ("wav", "FLOAT", True),
        ("wav", "IMA_ADPCM", False),
        ("flac", "PCM_16", False),
        ("flac", "PCM_24", True),
    ):
        out = io.BytesIO()
        wave = np.stack([WAVE, WAVE[::-1]], 1) if stereo else WAVE
        soundfile.write(out, wave, 16000, format=ending.upper(), subtype=kind)
        yield ending, out.getvalue()


def films():
    """(ending, file) of what PyAV writes; none without it."""
    try:
        import av
    except ImportError:
        return
    for ending, codec in (("mp4", "mpeg4"), ("mp4", "libx264"), ("webm", "libvpx")):
        out = io.BytesIO()
        with av.open(out, "w", format=ending) as container:
            stream = container.add_stream(codec, rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            sound = container.add_stream("aac", rate=16000) if ending == "mp4" else None
            for n in range(6):
                turned = np.ascontiguousarray(np.roll(PICTURE, 8 * n, 1))
                frame = av.VideoFrame.from_ndarray(turned, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if sound is not None:
                wave = av.AudioFrame.from_ndarray(WAVE[None], "fltp", "mono")
                wave.rate = 16000
                container.mux(sound.encode(wave))
                container.mux(sound.encode())
        yield ending, out.getvalue()


def files():
    """(ending, kind, file); a GIF is read as a picture and as a clip."""
    out = [(ending, "image", raw) for ending, raw in pictures()]
    out += [(e, "video", raw) for e, kind, raw in out if e == "gif"]
    out += [(ending, "audio", raw) for ending, raw in sounds()]
    return out + [(ending, "video", raw) for ending, raw in films()]


def damaged(raw, other, rng):
    """One file with bytes flipped, cut off, cut out, overwritten, or another's put in."""
    out = bytearray(raw)
    at, stop = sorted(rng.integers(0, len(raw) + 1, 2).tolist())
    how = int(rng.integers(6))
    if how == 0:
        for place in rng.integers(0, len(out), int(rng.integers(1, 9))):
            out[place] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del out[at:]
    elif how == 2:
        del out[at : min(stop, at + 64)]
    elif how == 3:
        out[at:stop] = other[at:stop]
    elif how == 4:
        # Sizes and counts live in the first bytes.
        place = int(rng.integers(0, min(len(out), 96)))
        word = (0, 1, 0x7F, 0x80, 0xFF)[int(rng.integers(5))]
        out[place : place + 4] = bytes([word]) * int(rng.integers(1, 5))
    else:
        out[at:at] = out[at : at + 256] * int(rng.integers(1, 40))
    return checked(out) if rng.random() < 0.5 else bytes(out)


def checked(out):
    """A PNG's checksums made right again, so that damage reaches the decoder."""
    at = 8
    while out[:4] == b"\x89PNG" and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 <= len(out):
            out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def outcome(kind, raw):
    """ "decoded", or why not, without its numbers."""
    try:
        part = Part(kind, data=raw)
        array, meta = media.load(part, LIMITS)
        sound = media.audio_of(part, LIMITS) if kind == "video" else None
    except media.MediaError as error:
        return re.sub(r"0x\w+|-?\d+(\.\d+)?|b'.*'|b\".*\"", "#", str(error))[:90]
    assert array.size and array.dtype == (np.float32 if kind == "audio" else np.uint8)
    assert array.ndim == {"image": 3, "audio": 1, "video": 4}[kind]
    assert np.isfinite(array).all() and len(array) <= LIMITS.max_pixels
    assert sound is None or (np.isfinite(sound[0]).all() and sound[0].ndim == 1)
    assert kind == "audio" or array.shape[-1] == 3
    assert kind != "video" or array.size <= 3 * LIMITS.max_clip_pixels
    return "decoded"


def fuzz(count, seed=0):
    """ending -> outcome -> how many, of `count` damaged files."""

    def stop(*_):
        raise Hang(f"{ending} {kind} {n} takes more than {DEADLINE_S} s")

    rng, every = np.random.default_rng(seed), files()
    found = collections.defaultdict(collections.Counter)
    before = signal.signal(signal.SIGALRM, stop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for n in range(count):
            ending, kind, raw = every[n % len(every)]
            other = every[int(rng.integers(len(every)))][2]
            bad = damaged(raw, other, rng)
            signal.alarm(DEADLINE_S)
            # Where no Python runs no signal is seen: the process ends with a traceback.
            faulthandler.dump_traceback_later(6 * DEADLINE_S, exit=True)
            try:
                found[ending][outcome(kind, bad)] += 1
            except Exception as error:
                error.add_note(f"file {n}, {ending} as {kind}, seed {seed}")
                raise
            signal.alarm(0)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < MAX_GROWTH_KIB, f"{grown >> 10} MiB more than before"
    return found


def report(found):
    """Lines of the counts."""
    for ending, outcomes in found.items():
        yield f"{ending}: {outcomes.pop('decoded', 0)} decoded, {outcomes.total()} refused"
        yield from (f"    {number:6d}  {why}" for why, number in outcomes.most_common())


def test_undamaged_files_are_read():
    """Else the mutations of a file would say nothing."""
    for ending, kind, raw in files():
        assert outcome(kind, raw) == "decoded", ending
        if ending == "mp4":
            assert media.audio_of(Part(kind, data=raw), LIMITS)[1] == {"rate": 16000}


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused():
    found = fuzz(400)
    assert sum(counts.total() for counts in found.values()) == 400
    for ending, counts in found.items():
        assert counts["decoded"] < counts.total(), ending
    assert sum(counts["decoded"] for counts in found.values()) > 40


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in report(fuzz(int(sys.argv[1]))):
        print(line)
