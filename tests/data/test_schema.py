"""Schemas: inferred from a log, read back, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lessen.data.encode import encode_logs
from lessen.data.infer import infer_schema
from lessen.data.schema import dump_schema, load_schema, parse_schema
from lessen.errors import ConfigError, DataError
from small_log import write_csv


def test_inferred_schema_is_valid_editable_and_encodes(log: Path, tmp_path: Path) -> None:
    schema = infer_schema(log)
    kinds = {field.name: field.kind for field in schema.fields}
    assert kinds == {
        "click": "label",
        "user": "categorical",
        "item": "categorical",
        "price": "numeric",
        "views": "categorical",
        "recent": "multi",
        "time": "timestamp",
        "query": "categorical",
    }
    path = tmp_path / "schema.yaml"
    path.write_text(dump_schema(schema))
    assert load_schema(path) == schema
    assert sum(encode_logs([str(log)], schema, tmp_path / "out").rows.values()) == 400


def test_inference_that_cannot_tell_says_so(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"a": "1", "b": "0", "c": "x"}, {"a": "0", "b": "1", "c": "y"}])
    with pytest.raises(DataError, match="columns of 0 and 1 are a, b; name it with --label"):
        infer_schema(path)
    assert infer_schema(path, label="b").label.name == "b"
    with pytest.raises(DataError, match="no column 'z'"):
        infer_schema(path, label="z")
    with pytest.raises(DataError, match="cannot tell the format"):
        infer_schema(write_csv(tmp_path / "a.dat", [{"a": "1"}]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a mapping"),
        ({"fields": [{"name": "y", "kind": "labl"}]}, "fields.0.kind"),
        ({"fields": [{"name": "y", "kind": "label", "mincount": 3}]}, "no key 'fields.0.mincount'"),
        ({"fields": [{"name": "y", "kind": "label"}, {"name": "y", "kind": "group"}]}, "'y' is listed twice"),
        ({"fields": [{"name": "a", "kind": "categorical"}]}, "0 fields have kind label"),
        ({"fields": [{"name": "y", "kind": "label"}]}, "no field has ids"),
        (
            {"fields": [{"name": "y", "kind": "label"}, {"name": "a", "kind": "categorical", "vocabulary": "b"}]},
            "shares the vocabulary of 'b', which has none",
        ),
    ],
)
def test_bad_schemas_are_named(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_schema(value, "schema.yaml")
