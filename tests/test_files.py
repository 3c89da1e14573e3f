"""Writes are all or nothing at every operation; hostile text is refused in one line."""

import os
from pathlib import Path

import pytest

from breaking_files import FailingFiles
from lessen import files
from lessen.errors import ArtifactError, ConfigError, OutputError


@pytest.mark.parametrize("operation", range(1, 7))
def test_every_failing_operation_leaves_old_or_new(tmp_path, monkeypatch, operation):
    target = tmp_path / "file"
    files.atomic_write(target, "old")
    monkeypatch.setattr(files, "FILES", FailingFiles(operation))
    try:
        files.atomic_write(target, "new")
        finished = True
    except OutputError as error:
        assert "No space left" in str(error)
        finished = False
    assert target.read_text() in ({"new"} if finished else {"old", "new"})
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert finished == (operation == 6)


@pytest.mark.parametrize("operation", range(1, 9))
def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch, operation):
    target = tmp_path / "folder"
    monkeypatch.setattr(files, "FILES", FailingFiles(operation))
    try:
        with files.atomic_folder(target) as folder:
            files.atomic_write(folder / "a", "1")
        finished = True
    except OutputError:
        finished = False
    names = [item.name for item in tmp_path.iterdir()]
    assert names in ([], ["folder"])
    if finished or names:
        assert (target / "a").read_text() == "1"


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"), files.atomic_folder(tmp_path / "there"):
        raise AssertionError("the block must not run")


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write") as caught:
        files.atomic_write(tmp_path / "file" / "below", "x")
    assert "\n" not in str(caught.value)


def test_stale_temporaries_of_dead_processes_go_and_living_ones_stay(tmp_path):
    import os

    dead, alive = tmp_path / f"{files.TEMPORARY}999999999-ab", tmp_path / f"{files.TEMPORARY}{os.getpid()}-ab"
    dead.mkdir()
    alive.write_text("x")
    files.remove_stale(tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="not a link"):
        files.read_checked(tmp_path / "link")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: 1\na: 2\n", "line 2: duplicate key 'a'"),
        ("a: " + "[" * 40 + "]" * 40, "deeper than 32"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: [1,\n", "line"),
        ("a" * (files.MAX_TEXT_BYTES + 1), "larger than"),
        ("[" * 100_000, "deeper than|not valid"),
    ],
)
def test_hostile_yaml_is_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        files.parse_yaml(text, "study.yaml")


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "[NaN]", "{", "[" * 100_000])
def test_hostile_json_is_refused(text):
    with pytest.raises(ArtifactError, match="not valid JSON"):
        files.parse_json(text, "structure.json")


def test_missing_and_binary_text_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        files.read_text(Path(tmp_path / "none.yaml"), "study")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        files.read_text(tmp_path / "bytes", "study")


def test_a_pipe_is_read_where_somebody_writes_and_not_waited_for_where_nobody_does(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert files.read_text(tmp_path / "pipe", "study") == ""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"study: s\n")
        os.close(writer)
        assert files.read_text(Path(f"/dev/fd/{reader}"), "study") == "study: s\n"
    finally:
        os.close(reader)


def test_a_file_without_an_end_is_too_large():
    with pytest.raises(ConfigError, match="larger than"):
        files.read_text(Path("/dev/zero"), "study")
