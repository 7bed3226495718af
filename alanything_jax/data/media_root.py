"""Media that rows name by path: files of one folder, or members of the archives in it.

    train_10k.json, videos.tar.gz0, videos.tar.gz1     {"video_path": "./videos/7.mp4"}

Nothing is extracted to a name that an archive chose, and no path leads out of the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import posixpath
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from alanything_jax.data import media
from alanything_jax.data.formats import common
from alanything_jax.schema import Example, Part

_ARCHIVE = re.compile(r"(.+\.(?:tar|tar\.gz|tgz))(?:\.?(?:part)?(\d+))?")
# What one header of an archive may ask to have in memory.
_MAX_READ = 16 << 20


class ArchiveError(RuntimeError):
    """An archive that is broken or hostile: no row of it is to be trusted."""


@dataclasses.dataclass
class MediaRoot:
    """The folder that paths of media are relative to.

    Attributes:
      folder: None where there is none: then no path can be read.
      archives: the tar files directly in it, split ones as one; None until needed.
    """

    folder: Path | None
    limits: media.MediaLimits = media.MediaLimits()
    archives: list[Archive] | None = None

    def embed(self, example: Example) -> Example:
        """The example with the bytes of its media instead of their paths.

        Web addresses stay as they are.

        Raises:
          MediaError: a path leads out of the folder, or nothing is there.
          ValueError: a part of a split archive is missing.
          ArchiveError: see `Archive.read`.
        """

        def load(part: Part) -> list[Part]:
            uri = part.uri or ""
            if part.data is not None or not uri or uri.startswith(("http:", "https:")):
                return [part]
            raw, meta = self.read(uri), {**part.meta, "path": uri}
            return [dataclasses.replace(part, data=raw, uri=None, meta=meta)]

        return common.map_parts(example, load)

    def read(self, uri: str) -> bytes:
        """The bytes of a medium; see `embed`."""
        name = posixpath.normpath(uri.removeprefix("file://"))
        if self.folder is None:
            raise media.MediaError(f"{uri}: relative to what? Give media_root.")
        try:
            path = (self.folder / name).resolve()
            there, inside = path.is_file(), path.is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError) as error:
            # A name too long, such as a file's content; links that lead to themselves.
            raise media.MediaError(f"{uri:.80} is no path: {error!s:.120}") from error
        if not inside:
            raise media.MediaError(
                f"{uri} leads out of {self.folder}. Give the folder that holds all media "
                "as media_root."
            )
        if there:
            part = Part("image", uri=str(path))
            return media.as_file(part, self.limits.max_bytes)
        if self.archives is None:
            self.archives = [Archive(p, self.limits) for p in _archives(self.folder)]
        for archive in self.archives:
            if (raw := archive.read(name)) is not None:
                return raw
        names = [archive.paths[0].name for archive in self.archives]
        raise media.MediaError(f"no {name} in {self.folder} or its archives {names}.")


@contextlib.contextmanager
def opened(folder: Path | None) -> Iterator[MediaRoot]:
    """The media of a folder, with its archives open until the end.

    Raises ValueError: no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"media_root {folder} is no folder.")
    root = MediaRoot(folder)
    try:
        yield root
    finally:
        for archive in root.archives or ():
            archive.close()


def _archives(folder: Path) -> list[tuple[Path, ...]]:
    """The parts of each archive of a folder, in order."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _ARCHIVE.fullmatch(path.name):
            found.setdefault(match[1], {})[int(match[2] or -1)] = path
    for name, parts in found.items():
        numbers = sorted(parts)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or (
            numbers[0] > 1
        ):
            raise ValueError(
                f"{folder}/{name} is split into parts {numbers}: one is missing."
            )
    return [tuple(parts[n] for n in sorted(parts)) for parts in found.values()]


@dataclasses.dataclass
class Archive:
    """A tar, gzipped or not, perhaps split over several files; read forwards, once.

    Members that are passed on the way to the one asked for are kept in a temporary file
    (in $TMPDIR), from which they are read later in any order: so the first rows of a set
    need not wait for all of it.
    """

    paths: Sequence[Path]
    limits: media.MediaLimits
    found: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    members: Iterator[tarfile.TarInfo] | None = None
    tar: tarfile.TarFile | None = None
    kept: IO[bytes] | None = None
    files: contextlib.ExitStack = dataclasses.field(
        default_factory=contextlib.ExitStack
    )

    def read(self, name: str) -> bytes | None:
        """The bytes of a member; None where there is none of that name.

        Raises:
          MediaError: the member is larger than the limit.
          ArchiveError: on the way there, the archive is broken, holds a link or device,
            or a name that leads out of it.
        """
        try:
            while name not in self.found and (member := self._next()) is not None:
                self._keep(member)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ArchiveError(
                f"{[str(p) for p in self.paths]} cannot be read as one archive "
                f"({type(error).__name__}: {error}). Is a part missing or cut off?"
            ) from error
        if name not in self.found or self.kept is None:
            return None
        at, size = self.found[name]
        if size > self.limits.max_bytes:
            raise media.MediaError(
                f"{name} in {self.paths[0]} is larger than {self.limits.max_bytes} bytes."
            )
        self.kept.seek(at)
        return self.kept.read(size)

    def close(self) -> None:
        """Close everything; the temporary file goes."""
        self.files.close()

    def _next(self) -> tarfile.TarInfo | None:
        if self.members is None:
            parts = [self.files.enter_context(p.open("rb")) for p in self.paths]
            zipped = parts[0].read(2) == b"\x1f\x8b"
            parts[0].seek(0)
            whole: Any = parts[0] if len(parts) == 1 else _Joined(parts)
            if zipped:
                whole = self.files.enter_context(gzip.GzipFile(fileobj=whole))
            # Mode "r" would seek back to guess the compression.
            self.tar = tarfile.open(fileobj=_Forward(whole), mode="r:")
            self.members = iter(self.tar)
            self.kept = self.files.enter_context(tempfile.TemporaryFile())
        return next(self.members, None)

    def _keep(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        where = f"{self.paths[0]} holds {member.name!r}"
        if name.startswith(("/", "../")) or name == "..":
            raise ArchiveError(f"{where}, which leads out of the archive: not read on.")
        if member.isdir() or name in self.found:
            return
        if not member.isfile():
            raise ArchiveError(
                f"{where}, which is a link or a device: only files are read. Pack the "
                "files themselves (tar --dereference)."
            )
        at = self.kept.seek(0, 2)
        self.found[name] = at, member.size
        if member.size <= self.limits.max_bytes:
            shutil.copyfileobj(self.tar.extractfile(member), self.kept, 1 << 20)


class _Joined:
    """Files read as if they were one."""

    def __init__(self, files: Sequence[IO[bytes]]):
        self.files = list(files)

    def read(self, size: int) -> bytes:
        while self.files:
            if block := self.files[0].read(size):
                return block
            self.files.pop(0)
        return b""


class _Forward:
    """What `tarfile` reads from: it only goes forwards, and a read has a limit."""

    def __init__(self, stream: Any):
        self.stream, self.at = stream, 0

    def tell(self) -> int:
        return self.at

    def seek(self, at: int) -> None:
        while self.at < at and self.read(min(at - self.at, 1 << 20)):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise ArchiveError(
                f"a header of {size} bytes; at most {_MAX_READ} are read."
            )
        pieces = []
        while size and (block := self.stream.read(size)):
            pieces.append(block)
            size, self.at = size - len(block), self.at + len(block)
        return b"".join(pieces)
