"""How long a file says it is: most decoders give back the beginning of one that is cut off
and say nothing.
"""

from __future__ import annotations


def stated_size(raw: bytes) -> int:
    """The bytes that a WAV, AVI, AIFF, MP4, Matroska or WebM file has by its own headers.

    A byte of padding may be missing. 0 = not stated, as of a file written to a pipe.
    """
    if raw[:4] in (b"RIFF", b"FORM"):
        size = int.from_bytes(raw[4:8], "little" if raw[:4] == b"RIFF" else "big")
        # Near 2 or 4 GiB stands for "not known".
        return 7 + size if size < 0x7FFF0000 else 0
    if raw[4:8] == b"ftyp":
        return _boxes(raw)
    if raw[:4] == b"\x1aE\xdf\xa3":
        size, at = _number(raw, 4)
        if raw[at + size : at + size + 4] == b"\x18S\x80g":
            size, at = _number(raw, at + size + 4)
            return at + size
    return 0


def _boxes(raw):
    """Where the last box of an MP4 ends, if it is one that matters."""
    at = stated = 0
    while at + 8 <= len(raw):
        size, name = int.from_bytes(raw[at : at + 4]), raw[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(raw[at + 8 : at + 16])
        if not size or not name.isalpha():
            break
        at += size
        stated = at if name in (b"moov", b"moof", b"mdat") else 0
    return stated


def _number(raw, at):
    """A number of Matroska and where it ends; 0 where it stands for "not known"."""
    size = 9 - raw[at].bit_length()
    value, top = int.from_bytes(raw[at : at + size]), (1 << 7 * size) - 1
    return (0 if value & top == top else value & top), at + size
