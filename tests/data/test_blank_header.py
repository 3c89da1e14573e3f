"""A column without a name, such as the row numbers that pandas writes, has one name at every door."""

from __future__ import annotations

from lessen.data.encode import encode_logs
from lessen.data.infer import infer
from lessen.data.readers import ReadSettings
from lessen.selection.ranking.source import chunks


def test_a_blank_name_is_the_same_for_infer_encode_and_rank(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("click,,price\n" + "".join(f"{i % 2},u{i % 7},{i / 2}\n" for i in range(60)))
    schema = infer([path], "click").schema
    assert [field.name for field in schema.fields] == ["click", "column_1", "price"]
    encode_logs([str(path)], schema, tmp_path / "out")
    (frame,) = chunks(path, ReadSettings())
    assert frame.columns == ["click", "column_1", "price"]
