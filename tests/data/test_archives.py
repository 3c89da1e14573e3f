"""Published zips: checked by MD5, told where to put them without network, nothing half-written."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from lessen.data import archives
from lessen.data.archives import Archive, fetch_archive
from lessen.data.catalogue import ARCHIVES, get
from lessen.errors import ConfigError, DataError

FILES = {"train.csv": b"label,a\n1,2\n", "valid.csv": b"label,a\n0,2\n", "test.csv": b"label,a\n1,3\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _archive(url: str = "http://127.0.0.1:9/Tiny.zip") -> Archive:
    sums = {name: hashlib.md5(raw).hexdigest() for name, raw in FILES.items()}
    return Archive("Tiny", "a test", "none", url, sums)


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for name, raw in files.items():
            opened.writestr(name, raw)
    return path


def test_a_zip_is_downloaded_checked_and_unpacked(cache: Path, tmp_path: Path) -> None:
    source = _zip(tmp_path / "Tiny.zip", {f"Tiny/{name}": raw for name, raw in FILES.items()})
    folder = fetch_archive(_archive(source.as_uri()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    source.unlink()
    assert fetch_archive(_archive(source.as_uri())) == folder


def test_a_zip_or_files_put_there_by_hand_are_taken(cache: Path) -> None:
    _zip(cache / "packages" / "Tiny.zip", FILES)
    folder = fetch_archive(_archive())
    (cache / "packages" / "Tiny.zip").unlink()
    assert fetch_archive(_archive()) == folder
    (folder / "test.csv").write_bytes(b"label,a\n1,4\n")
    with pytest.raises(DataError, match=r"test.csv is not the published file: its MD5 is \w+, not \w+"):
        fetch_archive(_archive())


def test_without_network_it_says_what_to_do(cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch_archive(_archive())
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "http://127.0.0.1:9/Tiny.zip",
        "Tiny.zip",
        str(cache / "bars" / "Tiny"),
        "MD5",
        *_archive().members.values(),
    ):
        assert part in text
    assert not (cache / "bars").exists()
    assert not list((cache / "packages").iterdir())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**FILES, "valid.csv": b"other"}, r"valid.csv in .* is not the published file"),
        ({"train.csv": FILES["train.csv"]}, r"holds 0 files called valid.csv"),
        ({**FILES, "x/train.csv": b"two"}, r"holds 2 files called train.csv"),
    ],
)
def test_another_zip_is_refused_and_leaves_nothing(cache: Path, files: dict[str, bytes], message: str) -> None:
    _zip(cache / "packages" / "Tiny.zip", files)
    with pytest.raises(DataError, match=message):
        fetch_archive(_archive())
    assert not (cache / "bars" / "Tiny").exists()


def test_what_is_no_zip_and_what_does_not_fit_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "packages").mkdir(parents=True)
    (cache / "packages" / "Tiny.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="cannot read .* as a zip"):
        fetch_archive(_archive())
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 5)
    _zip(cache / "packages" / "Tiny.zip", FILES)
    with pytest.raises(DataError, match="more than the disk has free"):
        fetch_archive(_archive())


def test_the_catalogue_knows_the_six_data_sets(cache: Path) -> None:
    assert len(ARCHIVES) == 6
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert all(len(md5) == 32 for md5 in archive.members.values())
    assert len({md5 for archive in ARCHIVES.values() for md5 in archive.members.values()}) == 18
    with pytest.raises(ConfigError, match="did you mean 'Frappe_x1'"):
        get("Frappe_x2")
