"""Files that are whole or not there, and what a file is by its first bytes."""

import json

import pytest

from alanything_jax.data import files, media


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path):
    place = tmp_path / "a.json"
    files.write_json(place, {"b": 1, "a": [2]})
    assert place.read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
    with pytest.raises(TypeError):
        files.write_json(place, {"a": object()})
    files.write_aside(tmp_path / "t", "ü")
    assert json.loads(place.read_text()) == {"b": 1, "a": [2]}
    assert (tmp_path / "t").read_bytes() == "ü".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "t"]


@pytest.mark.parametrize(
    "raw,mime,suffix",
    [
        (b"\x89PNG\r\n", "image/png", ".png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg", ".jpg"),
        (b"RIFF....WEBP", "image/webp", ".webp"),
        (b"RIFF....WAVE", "audio/wav", ".wav"),
        (b"\xff\xf3\x00", "audio/mpeg", ".mp3"),
        (b"....ftypisom", "video/mp4", ".mp4"),
    ],
)
def test_the_type_of_a_file(raw, mime, suffix):
    assert (media.mime_of(raw), media.suffix_of(raw)) == (mime, suffix)


def test_no_file_that_browsers_show():
    assert media.mime_of(b"%PDF") is None
    with pytest.raises(media.MediaError, match="b'%PDF'; browsers show .*.png"):
        media.suffix_of(b"%PDF")
