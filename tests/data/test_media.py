"""Files to arrays and back, and everything that is no such file."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alanything_jax.data import media
from alanything_jax.data.media import MediaError, MediaLimits
from alanything_jax.schema import Part

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def load(kind, raw, limits=MediaLimits()):
    return media.load(Part(kind, data=raw), limits)


def saved(picture, format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def chunk(name, data):
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + (struct.pack(">I", zlib.crc32(name + data)))
    )


def declared(width, height, depth=8, kind=2, pixels=b"\0" * 10):
    """A PNG whose header says so, with these bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def test_png_round_trip():
    raw = media.dump("image", PICTURE)
    assert raw.startswith(b"\x89PNG")
    array, meta = load("image", raw)
    assert array.dtype == np.uint8 and np.array_equal(array, PICTURE) and meta == {}


def test_wav_round_trip():
    """Every value that 16 bits hold comes back exactly."""
    wave = (np.arange(-32768, 32768) / 32768).astype(np.float32)
    array, meta = load("audio", media.dump("audio", wave, rate=8000))
    assert array.dtype == np.float32 and np.array_equal(array, wave)
    assert meta == {"rate": 8000}


def test_stereo_becomes_mono():
    import soundfile

    out = io.BytesIO()
    stereo = np.array([[0.5, 0.0], [0.25, -0.25]], np.float32)
    soundfile.write(out, stereo, 8000, format="WAV", subtype="FLOAT")
    assert load("audio", out.getvalue())[0].tolist() == [0.25, 0.0]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 256), st.integers(1, 4), st.integers(0, 99))
def test_gif_round_trip(colours, frames, seed):
    """Frames that are equal stay frames of their own."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    clip = table[rng.integers(0, colours, (frames, 6, 9))]
    clip[-1] = clip[0]
    array, meta = load("video", media.dump("video", clip, fps=4))
    assert array.dtype == np.uint8 and np.array_equal(array, clip)
    assert meta == {"fps": 4.0}


def test_a_gif_of_too_many_colours_takes_near_ones_and_one_of_no_frame_none():
    many = np.arange(257, dtype=np.uint16).view(np.uint8).reshape(1, 257, 2)
    clip = np.concatenate([many, np.zeros((1, 257, 1), np.uint8)], -1)[None]
    clip = np.concatenate([clip, clip[:, :, ::-1]])
    back, _ = load("video", media.dump("video", clip))
    assert back.shape == clip.shape
    assert np.abs(back.astype(int) - clip).mean() < 4
    with pytest.raises(MediaError, match="no frame"):
        media.dump("video", np.zeros((0, 4, 4, 3), np.uint8))


@pytest.mark.parametrize("size", [50_000, 11_000, 5_000])
def test_a_header_over_the_limit_is_refused_without_decoding(size, monkeypatch):
    def never(self):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.warns() if size == 11_000 else _nothing():
        with pytest.raises(MediaError, match="pixels.*allowed are 16777216|Allowed"):
            load("image", declared(size, size))


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_limits():
    raw = media.dump("image", PICTURE)
    assert load("image", raw, MediaLimits(max_pixels=1200))[0].shape == (30, 40, 3)
    with pytest.raises(MediaError, match="40 x 30 pixels; allowed are 1199"):
        load("image", raw, MediaLimits(max_pixels=1199))
    with pytest.raises(MediaError, match="bytes; allowed are 1 to 10"):
        load("image", raw, MediaLimits(max_bytes=10))
    wave = media.dump("audio", np.zeros(8001, np.float32), rate=8000)
    with pytest.raises(MediaError, match="8001 samples at 8000 Hz.*1 s"):
        load("audio", wave, MediaLimits(max_seconds=1))
    clip = media.dump(
        "video", PICTURE[:3, :4][None] // 128 + np.zeros((3, 1, 1, 1), "u1")
    )
    assert len(load("video", clip, MediaLimits(max_frames=3))[0]) == 3
    # The first and the third.
    thin, meta = load("video", clip, MediaLimits(max_frames=2))
    np.testing.assert_array_equal(thin, load("video", clip)[0][::2])
    assert meta["fps"] == load("video", clip)[1]["fps"] / 2


@pytest.mark.parametrize("kept", [4, 30, 200, 1500])
def test_truncated_png(kept):
    with pytest.raises(MediaError, match="the image cannot be decoded"):
        load("image", media.dump("image", PICTURE)[:kept])


def test_empty_and_foreign_files():
    with pytest.raises(MediaError, match="0 samples at 8000 Hz"):
        load("audio", media.dump("audio", np.zeros(0, np.float32), rate=8000))
    for kind, raw in (
        ("image", b"junk"),
        ("audio", b"RIFF\0\0\0\0junk"),
        ("video", b"GIF89a"),
        ("video", b"junk"),
        ("audio", media.dump("image", PICTURE)),
    ):
        if kind == "video" and raw == b"junk":
            pytest.importorskip("av")
        with pytest.raises(MediaError, match=f"the {kind} cannot be decoded"):
            load(kind, raw)
    with pytest.raises(MediaError, match="0 bytes; allowed are 1 to"):
        load("image", b"")
    with pytest.raises(MediaError, match="neither data nor a path"):
        media.load(Part("image"))


def film(av, frames):
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        if frames is not None:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    return out.getvalue()


def test_mp4():
    av = pytest.importorskip("av")
    shades = np.array([40, 120, 200], np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (3, 16, 32, 3))
    raw = film(av, np.ascontiguousarray(frames))
    array, meta = load("video", raw)
    assert array.shape == (3, 16, 32, 3) and meta == {"fps": 5.0}
    np.testing.assert_allclose(array.mean((1, 2, 3)), shades, atol=4)
    with pytest.raises(MediaError, match="frames of 32 x 16 pixels"):
        load("video", raw, MediaLimits(max_pixels=511))


def test_long_clips_are_thinned():
    """A minute of film is over any limit of frames kept; what is left is evenly spaced."""
    av = pytest.importorskip("av")
    shades = np.linspace(0, 250, 40).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (40, 16, 32, 3))
    raw = film(av, np.ascontiguousarray(frames))
    whole, thin = load("video", raw)[0], load("video", raw, MediaLimits(max_frames=12))
    np.testing.assert_array_equal(thin[0], whole[::4])
    assert thin[1] == {"fps": 5 / 4}
    thin = load("video", raw, MediaLimits(max_clip_pixels=5 * 512))
    np.testing.assert_array_equal(thin[0], whole[::8])
    with pytest.raises(MediaError, match="more than 30 frames"):
        load("video", raw, MediaLimits(max_seconds=0.5))
    with pytest.raises(MediaError, match="no room for two of its frames"):
        load("video", raw, MediaLimits(max_clip_pixels=512))


def test_a_clip_without_frames():
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), "fltp", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video stream"):
        load("video", out.getvalue())
    with pytest.raises(MediaError):
        load("video", film(av, []))


def test_other_modes_become_rgb():
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    wanted = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, -1)
    for format in ("PNG", "TIFF"):
        array, _ = load("image", saved(Image.fromarray(grey), format))
        assert array.dtype == np.uint8 and np.array_equal(array, wanted)
    for mode, colour, rgb in (
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("LA", (90, 255), (90, 90, 90)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
    ):
        array, _ = load("image", saved(Image.new(mode, (4, 3), colour)))
        assert array.shape == (3, 4, 3) and (array == rgb).all()
    for kind, values, rgb in (
        (2, (0x12FF, 0xAB00, 0xFF00), (0x12, 0xAB, 0xFF)),
        (4, (0x12FF, 0xFFFF), (0x12, 0x12, 0x12)),
        (6, (0x12FF, 0, 0, 0), (255, 255, 255)),
    ):
        pixels = b"\0" + struct.pack(f">{len(values)}H", *values)
        array, _ = load("image", declared(1, 1, 16, kind, pixels))
        assert array.tolist() == [[list(rgb)]]
    for mode, colour in (("F", 0.5), ("I", 70_000)):
        with pytest.raises(MediaError, match="32 bits; give 8 or 16"):
            load("image", saved(Image.new(mode, (2, 2), colour), "TIFF"))
    array, _ = load("image", saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(array[0, 0], (255, 0, 0), atol=3)


def test_paths_and_uris(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(media.dump("image", PICTURE))
    for uri in (str(path), f"file://{path}"):
        assert np.array_equal(media.load(Part("image", uri=uri))[0], PICTURE)
    with pytest.raises(MediaError, match="is larger than 10 bytes"):
        media.load(Part("image", uri=str(path)), MediaLimits(max_bytes=10))
    with pytest.raises(MediaError, match="no file at"):
        media.load(Part("image", uri=str(tmp_path / "b.png")))
    for uri in ("https://example.org/a.png", "s3://bucket/a.png", "file://http://x"):
        with pytest.raises(MediaError, match="only local files are read"):
            media.load(Part("image", uri=uri))


def test_arrays_pass_as_they_are():
    array, meta = media.load(Part("image", data=PICTURE, meta={"width": 40}))
    assert array is PICTURE and meta == {"width": 40}


def sound(format, subtype="PCM_16", rate=8000, wave=np.sin(np.arange(9000) / 9)):
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=format, subtype=subtype)
    return out.getvalue()


def test_what_is_transparent_lies_on_white_and_exif_turns():
    clear = Image.new("RGBA", (1, 2), (200, 100, 0, 0))
    clear.putpixel((0, 1), (200, 100, 0, 51))
    wanted = [[[255, 255, 255]], [[244, 224, 204]]]
    for options in ({"format": "PNG"}, {"format": "WEBP", "lossless": True}):
        assert load("image", saved(clear, **options))[0].tolist() == wanted
    grey = Image.fromarray(np.array([[7, 9]], np.uint8))
    array, _ = load("image", saved(grey, transparency=7))
    assert array[0].tolist() == [[255] * 3, [9] * 3]
    indexed = grey.convert("P")
    array, _ = load("video", saved(indexed, "GIF", transparency=7))
    assert array[0, 0].tolist() == [[255] * 3, [9] * 3]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    assert np.array_equal(
        load("image", saved(Image.fromarray(PICTURE), exif=exif))[0],
        np.rot90(PICTURE, -1),
    )


def faststart(av, path, format, codec, **options):
    """A film whose index comes first, as on the web: its beginning can be decoded."""
    with av.open(str(path), "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "yuv420p"
        for n in range(12):
            frame = np.ascontiguousarray(np.roll(PICTURE, n, 1))
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0.6, 0.95])
def test_what_is_cut_off_is_no_shorter_medium(keep, tmp_path):
    """Most decoders give back the beginning and say nothing."""
    picture, out = Image.fromarray(PICTURE), []
    for format, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("BMP", {}),
        ("GIF", {}),
    ):
        out.append(("image", saved(picture, format, **options)))
    out.append(("video", media.dump("video", np.stack([PICTURE >> 6, PICTURE >> 5]))))
    for format in ("WAV", "FLAC", "AIFF"):
        out.append(("audio", sound(format)))
    out += [
        ("audio", sound("OGG", "VORBIS")),
        ("audio", sound("MP3", "MPEG_LAYER_III")),
    ]
    try:
        import av
    except ImportError:
        pass
    else:
        for format, codec, flags in (
            ("mp4", "mpeg4", {"movflags": "faststart"}),
            ("mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
            ("webm", "libvpx", {}),
            ("avi", "mpeg4", {}),
        ):
            film = faststart(av, tmp_path / "film", format, codec, **flags)
            out.append(("video", film))
    for kind, raw in out:
        load(kind, raw)
        with pytest.raises(MediaError, match="cannot be decoded|cut off|0 samples"):
            load(kind, raw[: int(keep * len(raw))])


def test_sizes_that_were_not_known_when_the_file_was_begun(tmp_path):
    wave = bytearray(sound("WAV"))
    wave[4:8] = wave[40:44] = b"\xff\xff\xff\xff"
    assert load("audio", bytes(wave))[0].shape == (9000,)
    av = pytest.importorskip("av")
    film = faststart(av, tmp_path / "film", "webm", "libvpx", live="1")
    assert len(load("video", film)[0]) == 12


def test_sampling_rates_and_samples():
    for rate in (1000, 11025, 44056, 192_000):
        assert load("audio", sound("WAV", rate=rate))[1] == {"rate": rate}
    for rate in (1, 999, 192_001, 2**31 - 1):
        with pytest.raises(
            MediaError, match=f"at {rate} Hz; allowed are 1000 to 192000"
        ):
            load("audio", sound("WAV", rate=rate))
    for bad in (np.nan, np.inf):
        with pytest.raises(MediaError, match="infinite or no numbers"):
            load("audio", sound("WAV", "FLOAT", wave=np.array([0.0, bad])))


def gif(*descriptors):
    """A GIF of 2 x 2 pixels with an image block per (x, y, width, height)."""
    blocks = [
        b"," + struct.pack("<4H", *d) + b"\0\x02\x02\x84\x51\0" for d in descriptors
    ]
    head = b"GIF89a" + struct.pack("<2HBBB", 2, 2, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"".join([head, *blocks, b";"])


def test_what_fuzzing_found():
    """Pillow raises IndexError, struct.error, AssertionError, DecompressionBombError."""
    frame = (0, 0, 2, 2)
    raw = gif(frame, frame)
    assert load("video", raw)[0].shape == (2, 2, 2, 3)
    for bad in (raw[:44] + b";", raw[:38] + b";", gif(frame, (65_000, 65_000, 9, 9))):
        with pytest.raises(MediaError, match="the video cannot be decoded"):
            load("video", bad)
    with pytest.raises(MediaError, match="the image cannot be decoded"):
        load("image", declared(1, 1, 8, 3))  # colours from a table that is not there


def test_frames_that_grow():
    """Pillow makes the screen larger where a later frame reaches over its edge."""
    with pytest.raises(
        MediaError, match=r"frames of sizes \[\(2, 2, 3\), \(3, 3, 3\)\]"
    ):
        load("video", gif((0, 0, 2, 2), (1, 1, 2, 2)))
    with pytest.raises(MediaError, match="frames of 4002 x 5002 pixels"):
        load("video", gif((0, 0, 2, 2), (4000, 5000, 2, 2)))


def test_formats_that_are_not_opened():
    """PostScript would be run by a program, a playlist opens what it names."""
    script = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    assert Image.open(io.BytesIO(script)).format == "EPS"
    with pytest.raises(MediaError, match="cannot identify image file"):
        load("image", script)
    pytest.importorskip("av")
    for playlist in (
        b"ffconcat version 1.0\nfile 'film.mp4'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n",
    ):
        with pytest.raises(MediaError, match="Invalid (argument|data)"):
            load("video", playlist)


@pytest.mark.parametrize("uri", ["x" * 5000, "a\0b", {"path": "a.png"}, "/dev/zero"])
def test_paths_that_are_none(uri):
    with pytest.raises(MediaError) as found:
        media.load(Part("image", uri=uri))
    assert len(str(found.value)) < 400 + (
        len(uri) if "no file" in str(found.value) else 0
    )


@pytest.mark.parametrize(
    "kind,array,meta",
    [
        ("image", np.zeros((3, 3, 5)), {}),
        ("audio", np.zeros((3, 4, 5)), {"rate": 8000}),
        ("video", np.zeros((3, 4, 5), np.uint8), {}),
    ],
)
def test_an_array_that_is_no_medium_cannot_be_a_file(kind, array, meta):
    with pytest.raises(MediaError, match=f"the {kind}'s array cannot be encoded"):
        media.as_file(Part(kind, data=array, meta=meta))
