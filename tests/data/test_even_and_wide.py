"""What the doors leave out when a table is in order, and that thousands of columns cost what they hold."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from lessen.data.pieces import log_pieces
from lessen.data.readers import ReadSettings, read_pieces
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError


def cells_of(lines: list[str]) -> list[int]:
    return [line.count(",") + 1 for line in lines]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_row_of_a_wrong_number_of_cells_is_found_wherever_it_stands(tmp_path: Path, end: str) -> None:
    """The cells are plain, so that counting separators in every line is the whole truth."""
    draw, path, ragged = random.Random(3), tmp_path / "rows.csv", 0
    for _ in range(400):
        width = draw.randint(2, 4)
        sizes = [width if draw.random() < 0.9 else draw.randint(1, width + 2) for _ in range(draw.randint(1, 6))]
        lines = [",".join(draw.choice(("a", "", "1.5", " ")) for _ in range(size)) for size in sizes]
        if not lines[-1]:
            continue
        path.write_text(",".join(f"c{at}" for at in range(width)) + "\n" + "\n".join(lines) + end)
        try:
            read = pl.concat([piece.frame for piece in read_pieces(path, ReadSettings(separator=","))])
        except DataError as error:
            ragged += 1
            first = next(at for at, size in enumerate(cells_of(lines)) if size != width)
            assert f"line {first + 2}: {cells_of(lines)[first]} cells where {width} are expected" in str(error)
        else:
            assert cells_of(lines) == [width] * len(read)
            assert [",".join(cell or "" for cell in row) for row in read.rows()] == lines
    assert 50 < ragged < 350


def test_the_types_of_a_frame_are_asked_for_once_and_not_once_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame makes its schema anew for each caller: asked for by each of 3,000 columns, that was 50 of 56 seconds."""
    asked, schema_of = [0], pl.DataFrame.schema.fget  # type: ignore[attr-defined]

    def counted(frame: pl.DataFrame) -> pl.Schema:
        asked[0] += 1
        return schema_of(frame)  # type: ignore[no-any-return]

    monkeypatch.setattr(pl.DataFrame, "schema", property(counted))
    calls = []
    for width in (20, 200):
        names = [f"x{at}" for at in range(width)]
        path = tmp_path / f"{width}.csv"
        path.write_text(",".join(["y", *names]) + "\n" + ",".join(["1"] * (width + 1)) + "\n")
        fields = [FieldSchema(name="y", kind="label"), *(FieldSchema(name=name, kind="categorical") for name in names)]
        asked[0] = 0
        (piece,) = log_pieces(path, Schema(fields=tuple(fields)))
        calls.append(asked[0])
        assert piece.frame.width == width + 1
    assert calls[0] == calls[1] < 10
