"""Data sets that are published as one zip of CSV files on the web: fetched, checked by MD5, unpacked member by member.

A machine without network is told which file to fetch elsewhere and where to put it; both the zip and the CSV files are
taken. Nothing is unpacked to a path that the archive chooses.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

from lessen.data.cache import cache_folder
from lessen.data.offline import require_network
from lessen.errors import DataError
from lessen.files import atomic_folder, writing
from lessen.log import SILENT, Log

PIECE = 1 << 20
CONNECT_SECONDS = 30
LARGEST_MEMBER = 64 << 30


@dataclass(frozen=True)
class Archive:
    """A zip at `url` whose CSV members are known by their MD5."""

    name: str
    what: str
    licence: str
    url: str
    members: dict[str, str]
    """MD5 by file name, such as {"train.csv": "..."}."""

    @property
    def filename(self) -> str:
        """Return the name of the zip."""
        return f"{self.name}.zip"

    @property
    def folder(self) -> Path:
        """Return where the checked files are kept."""
        return cache_folder() / "bars" / self.name

    @property
    def present(self) -> bool:
        """Say whether the files are there; their content is checked by `fetch_archive`."""
        return all((self.folder / member).is_file() for member in self.members)


def fetch_archive(archive: Archive, log: Log = SILENT) -> Path:
    """Return the folder that holds the checked files, downloading and unpacking the zip if they are not there.

    Raises:
        DataError: there is no network, or a file is not the published one; says what to do.
        OutputError: the cache cannot be written.
    """
    if archive.present:
        verify(archive.folder, archive.members)
        return archive.folder
    given = cache_folder() / "packages" / archive.filename
    if given.is_file():
        _unpack(archive, given, log)
        return archive.folder
    with writing(given):
        given.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=given.parent) as folder:
            arrived = Path(folder) / archive.filename
            _download(archive, arrived, log)
            _unpack(archive, arrived, log)
    return archive.folder


def verify(folder: Path, members: dict[str, str]) -> None:
    """Compare the MD5 of files with the published one. Raises DataError naming the first that is missing or differs."""
    for member, expected in members.items():
        path = folder / member
        if not path.is_file():
            raise DataError(f"{folder} lacks {member}; the folder must hold {', '.join(members)}")
        with path.open("rb") as handle:
            found = _md5(handle)
        if found != expected:
            raise DataError(f"{path} is not the published file: its MD5 is {found}, not {expected}")


def _md5(handle: IO[bytes], copy: IO[bytes] | None = None) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while piece := handle.read(PIECE):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return digest.hexdigest()


def _download(archive: Archive, path: Path, log: Log) -> None:
    require_network(archive.name, by_hand(archive))
    log.note(f"downloading {archive.name} from {archive.url}")
    try:
        with urllib.request.urlopen(archive.url, timeout=CONNECT_SECONDS) as answer, path.open("wb") as handle:
            total = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(PIECE):
                handle.write(piece)
                log.progress(f"downloading {archive.name}", handle.tell(), max(total, handle.tell()))
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"cannot download {archive.name} ({reason}); {by_hand(archive)}") from error


def by_hand(archive: Archive) -> str:
    """Return what to do on a machine without network, in one sentence."""
    sums = ", ".join(f"{member} {md5}" for member, md5 in archive.members.items())
    return (
        f"fetch {archive.url} elsewhere and put it into {cache_folder() / 'packages'} as {archive.filename}, "
        f"or put the unpacked CSV files into {archive.folder}, then repeat; they are checked by MD5: {sums}"
    )


def _unpack(archive: Archive, path: Path, log: Log) -> None:
    log.note(f"unpacking and checking {path.name}")
    try:
        with zipfile.ZipFile(path) as opened, atomic_folder(archive.folder) as folder:
            for member, expected in archive.members.items():
                with opened.open(_entry(opened, path, member)) as source, (folder / member).open("wb") as target:
                    found = _md5(source, target)
                if found != expected:
                    raise DataError(
                        f"{member} in {path} is not the published file: its MD5 is {found}, not {expected}; "
                        "delete the zip and get it again"
                    )
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise DataError(f"cannot read {path} as a zip: {error}; delete it and get it again") from error


def _entry(opened: zipfile.ZipFile, path: Path, member: str) -> zipfile.ZipInfo:
    """Return the one entry of this file name, in whatever folder of the zip it lies."""
    found = [info for info in opened.infolist() if not info.is_dir() and Path(info.filename).name == member]
    if len(found) != 1:
        raise DataError(f"{path} holds {len(found)} files called {member}, expected one; is it the published zip?")
    if found[0].file_size > min(LARGEST_MEMBER, shutil.disk_usage(path.parent).free):
        raise DataError(f"{member} in {path} needs {found[0].file_size} bytes, more than the disk has free")
    return found[0]
