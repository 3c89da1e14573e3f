"""What the columns of a click log are: a small YAML file that is inferred once and then edited.

format: csv                 csv, tsv, jsonl, parquet, libsvm or vw
separator: ","
missing: ["NULL", "NA"]     besides empty cells
fields:
  - {name: clicked, kind: label}
  - {name: user, kind: categorical, minimum_count: 2}
  - {name: price, kind: numeric, transform: log-squared, fill: 0}
  - {name: recent, kind: sequence, separator: "|", length: 20, vocabulary: item}
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen.data.readers import Format, ReadSettings
from lessen.errors import ConfigError, explain
from lessen.files import dump_yaml, parse_yaml, read_text

FieldKind = Literal["categorical", "numeric", "multi", "sequence", "label", "weight", "timestamp", "group", "ignore"]
Transform = Literal["none", "standard", "log-squared", "quantile"]
Spelling = Literal["auto", "number", "exact"]
ID_KINDS = ("categorical", "multi", "sequence")


class FieldSchema(BaseModel):
    """One column of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    kind: FieldKind
    minimum_count: int = Field(1, ge=1, description="ids seen less often in train become out-of-vocabulary")
    buckets: int | None = Field(None, ge=1, description="hash ids into this many rows instead of a vocabulary")
    vocabulary: str | None = Field(None, description="field whose vocabulary this one shares")
    spelling: Spelling = Field(
        "auto", description="number: 01, 1.0 and True are the id 1; exact: they are four ids; auto asks if both occur"
    )
    separator: str = Field("|", min_length=1, max_length=1, description="between the ids of a multi or sequence cell")
    length: int = Field(20, ge=1, le=10_000, description="ids kept of a multi (first) or sequence (last) cell")
    transform: Transform = Field("none", description="of a numeric field; buckets make it categorical")
    bins: int = Field(10, ge=2, le=10_000, description="of the quantile transform")
    fill: float | None = Field(None, description="value of an empty numeric cell; without it, empty is an error")

    @property
    def has_ids(self) -> bool:
        """Say whether the encoded field is ids: categorical kinds and bucketed numbers."""
        return self.kind in ID_KINDS or self.bucketed

    @property
    def bucketed(self) -> bool:
        """Say whether a numeric field is cut into buckets."""
        return self.kind == "numeric" and self.transform in ("log-squared", "quantile")


class Schema(BaseModel):
    """The columns of a log and how it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Format = "csv"
    separator: str = Field(",", min_length=1, max_length=1, description="of csv; tsv always has tabs")
    header: bool = Field(True, description="whether csv and tsv files start with names; without, fields are in order")
    quote: str = Field('"', min_length=1, max_length=4, description="of csv and tsv; none: quotes are plain characters")
    encoding: str = Field("utf8", description="utf8, utf8-lossy, utf-16, latin-1 or another text codec of Python")
    missing: tuple[str, ...] = Field((), description="words that stand for an empty cell, such as NULL and NA")
    fields: tuple[FieldSchema, ...] = Field(min_length=1)

    @property
    def reading(self) -> ReadSettings:
        """Return how files are read. Raises ConfigError: no such encoding, or a quote or separator that cannot be."""
        return ReadSettings(
            format=self.format,
            separator="\t" if self.format == "tsv" else self.separator,
            quote=None if self.quote == "none" else self.quote,
            encoding=self.encoding,
            header=self.header,
            names=None if self.header else tuple(field.name for field in self.fields),
            placed=True,
        )

    def top(self) -> dict[str, Any]:
        """Return all but the fields, as YAML shows it: settings that were left at their default omitted."""
        rare = self.model_dump(mode="json", include={"quote", "encoding", "missing"}, exclude_defaults=True)
        return {"format": self.format, "separator": self.separator, "header": self.header, **rare}

    def of_kind(self, *kinds: FieldKind) -> tuple[FieldSchema, ...]:
        """Return the fields of these kinds in order."""
        return tuple(field for field in self.fields if field.kind in kinds)

    @property
    def label(self) -> FieldSchema:
        """Return the label column."""
        return self.of_kind("label")[0]

    @property
    def used(self) -> tuple[FieldSchema, ...]:
        """Return the columns that are read."""
        return tuple(field for field in self.fields if field.kind != "ignore")


def check_schema(schema: Schema) -> Schema:
    """Return `schema` if its fields fit together. Raises ConfigError naming the field."""
    names = Counter(field.name for field in schema.fields)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"schema: the field {twice[0]!r} is listed twice")
    _ = schema.reading  # raises where quote and encoding make no sense
    at_most_one: tuple[FieldKind, ...] = ("label", "weight", "timestamp", "group")
    for kind in at_most_one:
        found = schema.of_kind(kind)
        if len(found) > 1 or (kind == "label" and not found):
            raise ConfigError(f"schema: {len(found)} fields have kind {kind}; set kind: {kind} on one of them")
    if not any(field.has_ids for field in schema.fields):
        raise ConfigError("schema: no field has ids; give at least one categorical, multi or sequence field")
    by_name = {field.name: field for field in schema.fields}
    for field in schema.fields:
        if field.vocabulary is None:
            continue
        owner = by_name.get(field.vocabulary)
        if owner is None or not owner.has_ids or owner.vocabulary is not None or not field.has_ids:
            raise ConfigError(f"schema: {field.name} shares the vocabulary of {field.vocabulary!r}, which has none")
    return schema


def load_schema(path: Path) -> Schema:
    """Read a schema from YAML. Raises ConfigError naming the key."""
    return parse_schema(parse_yaml(read_text(path, "schema"), str(path)), str(path))


def parse_schema(value: Any, where: str) -> Schema:
    """Build a schema from YAML or JSON values. Raises ConfigError naming the key."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping with the key 'fields'")
    try:
        return check_schema(Schema(**value))
    except ValidationError as error:
        known = {*Schema.model_fields, *FieldSchema.model_fields}
        raise ConfigError(f"{where}: {explain(error, 'schema', known)}") from error


def dump_schema(schema: Schema) -> str:
    """Return the schema as YAML, settings that were left at their default omitted."""
    fields = [{"name": f.name, "kind": f.kind, **f.model_dump(exclude_defaults=True)} for f in schema.fields]
    return dump_yaml({**schema.top(), "fields": fields})
