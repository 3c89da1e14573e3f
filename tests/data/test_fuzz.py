"""Damaged files of every format end in rows or in one line; no exception of a library reaches the user bare."""

from __future__ import annotations

import os
import random
from pathlib import Path

import polars as pl
import pytest

from damaged_tables import WHOLE, mutated, schema_of
from lessen.data.encode import encode_logs
from lessen.data.infer import infer
from lessen.data.pieces import log_pieces
from lessen.data.readers import ReadSettings
from lessen.data.readers.boundary import foreign, unprinted
from lessen.errors import DataError, LessenError
from lessen.selection.ranking.source import chunks, texts


def attempt(path: Path, name: str, number: int) -> bool:
    """Read the file by one of its doors; say whether that gave rows."""
    try:
        if number % 4 == 0:
            return sum(len(texts(frame, "x")) for frame in chunks(path, ReadSettings())) > 0
        if number % 4 == 1:
            return len(infer([path], "label" if name in ("a.libsvm", "a.vw") else "click").schema.fields) > 0
        if number % 4 == 2:
            return sum(len(piece.frame) for piece in log_pieces(path, schema_of(name), size=700)) > 0
        encode_logs([str(path)], schema_of(name), path.parent / f"out{number}", skip_bad=number % 3 * 10)
    except LessenError as error:
        assert "\n" not in str(error)
        assert len(str(error)) > 15
        return False
    return True


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read_by_every_door(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE[name])
    assert all(attempt(tmp_path / name, name, number) for number in range(4))


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_end_in_rows_or_in_one_line(tmp_path: Path, name: str) -> None:
    damage(tmp_path / name, name, range(60))


@pytest.mark.parametrize(("name", "seed"), [("a.parquet", 1025), ("b.parquet", 1057), ("b.parquet", 1207)])
def test_what_rust_prints_of_its_panics_reaches_nobody(tmp_path: Path, capfd, name: str, seed: int) -> None:
    """The mutants are ones for which polars panics in a thread of its own, which prints before Python hears of it."""
    path = tmp_path / name
    path.write_bytes(mutated(WHOLE[name], random.Random(seed)))
    for door in range(4):
        attempt(path, name, door)
    assert "panicked" not in capfd.readouterr().err
    with pytest.raises(BaseException, match="panic|unwrap|Err") as caught:  # polars alone
        pl.scan_parquet(path).collect()
    assert "panicked at" in capfd.readouterr().err
    assert type(caught.value).__name__ == "PanicException"


def test_words_of_others_pass_and_panics_do_not(capfd) -> None:
    panic = b"\nthread 'async-executor-0' (7) panicked at a.rs:1:2:\nno\nway\nstack backtrace:\n   0: main\n"
    with unprinted():
        os.write(2, b"before\n" + panic + b"note: Some details are omitted, run with more\n")
        with unprinted():
            os.write(2, panic + b"note: run with `RUST_BACKTRACE=1`\nafter\n")
    assert capfd.readouterr().err == "before\nafter\n"
    with pytest.raises(DataError, match="^it: no$"), foreign("it"):
        _panicking(panic)
    os.write(2, b"here\n")
    assert capfd.readouterr().err == "here\n"


def _panicking(panic: bytes) -> None:
    os.write(2, panic + panic)
    raise ValueError("no")


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_two_thousand_damaged_files(tmp_path: Path, name: str) -> None:
    damage(tmp_path / name, name, range(1_000, 3_000))


def damage(path: Path, name: str, seeds: range) -> None:
    refused = 0
    for seed in seeds:
        path.write_bytes(mutated(WHOLE[name], random.Random(seed)))
        refused += not attempt(path, name, seed)
    assert refused > len(seeds) / 10  # the damage is real
