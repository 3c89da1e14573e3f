"""The six data sets of BARS-CTR: columns, rows, origin and checksums, and how their CSV files become a schema.

Every file has a header line. Frappe, MovielensLatest, Criteo_x1 and Avazu_x1 hold integer codes (made from libsvm
files); Criteo_x4 and Avazu_x4 hold the raw columns of the two competitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lessen.data.archives import verify
from lessen.data.catalogue import ARCHIVES
from lessen.data.readers import ReadSettings, columns_of
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError, OutputError
from lessen.files import atomic_folder, dump_json, sha256

SPLITS = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}
INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CODES = tuple(f"C{i}" for i in range(1, 27))
ORIGIN = "sources.json"


@dataclass(frozen=True)
class BarsData:
    """Columns of the published CSV files, and the rows of train, valid and test."""

    name: str
    label: str
    categorical: tuple[str, ...]
    rows: tuple[int, int, int]
    numeric: tuple[str, ...] = ()
    bucketed: tuple[str, ...] = ()
    """Integers cut into log-squared buckets, empty cells as 0."""
    timed: bool = False
    """`hour` (YYMMDDHH) becomes hour of day, weekday and weekend."""
    ignored: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that a file must have."""
        derived = ("weekday", "weekend") if self.timed else ()
        return tuple(n for n in (self.label, *self.numeric, *self.bucketed, *self.categorical) if n not in derived)

    def schema(self, minimum_count: int) -> Schema:
        """Return how the columns are read: ids seen less often than `minimum_count` in train share one row."""
        fields = [FieldSchema(name=self.label, kind="label")]
        fields += [FieldSchema(name=name, kind="numeric") for name in self.numeric]
        fields += [
            FieldSchema(name=name, kind="numeric", transform="log-squared", fill=0, minimum_count=minimum_count)
            for name in self.bucketed
        ]
        fields += [FieldSchema(name=name, kind="categorical", minimum_count=minimum_count) for name in self.categorical]
        return Schema(format="parquet" if self.timed else "csv", fields=tuple(fields))


DATASETS: dict[str, BarsData] = {
    data.name: data
    for data in (
        BarsData(
            "Frappe_x1", "label",
            ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"),
            (202_027, 57_722, 28_860),
        ),
        BarsData("MovielensLatest_x1", "label", ("user_id", "item_id", "tag_id"), (1_404_801, 401_372, 200_686)),
        BarsData("Criteo_x1", "label", CODES, (33_003_326, 8_250_124, 4_587_167), numeric=INTEGERS),
        BarsData("Criteo_x4", "Label", CODES, (36_672_493, 4_584_062, 4_584_062), bucketed=INTEGERS),
        BarsData(
            "Avazu_x1", "label", tuple(f"feat_{i}" for i in range(1, 23)), (28_300_276, 4_042_897, 8_085_794)
        ),
        BarsData(
            "Avazu_x4", "click",
            (
                "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain",
                "app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type",
                *(f"C{i}" for i in range(14, 22)), "weekday", "weekend",
            ),
            (32_343_172, 4_042_897, 4_042_898), timed=True, ignored=("id",),
        ),
    )
}  # fmt: skip


def data_of(dataset: str) -> BarsData:
    """Return the data behind a data set with settings: Criteo_x4_001 and _002 share the files of Criteo_x4."""
    return DATASETS[dataset.removesuffix("_001").removesuffix("_002")]


def checked_files(data: BarsData, folder: Path, published: bool = True) -> dict[str, Path]:
    """Return the three files of `folder` by split, headers checked, and MD5 sums unless `published` is False.

    Raises:
        DataError: a file is missing, lacks a column, or is not the published one.
    """
    found = {split: folder / name for split, name in SPLITS.items()}
    for path in found.values():
        if not path.is_file():
            names = ", ".join(SPLITS.values())
            raise DataError(f"{path} does not exist; {data.name} needs {names}: run lessen data get {data.name}")
        _check_header(path, data)
    if published:
        try:
            verify(folder, ARCHIVES[data.name].members)
        except DataError as error:
            raise DataError(f"{error}; to use another split of your own, add --own-split") from error
    return found


def _check_header(path: Path, data: BarsData) -> None:
    _, found = columns_of(path, ReadSettings(format="csv", separator=","))
    missing = [name for name in data.columns if name not in found]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} of {data.name}; its first line holds {', '.join(found[:12])}"
        )
    unknown = [name for name in found if name not in (*data.columns, *data.ignored)]
    if unknown:
        raise DataError(f"{path} has the column {unknown[0]!r}, which {data.name} has not; is it another data set?")


def derived(paths: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Write hour of day, weekday (0 is Sunday) and weekend in place of Avazu's `hour`, as Parquet, streaming.

    Raises:
        DataError: an `hour` is not of the form YYMMDDHH.
        OutputError: `folder` was made from other files.
    """
    origin = dump_json({split: sha256(path) for split, path in paths.items()})
    if not folder.exists():
        with atomic_folder(folder) as made:
            for split, path in paths.items():
                _with_times(path).sink_parquet(made / f"{split}.parquet")
                _check_times(path, made / f"{split}.parquet")
            (made / ORIGIN).write_text(origin)
    elif not (folder / ORIGIN).is_file() or (folder / ORIGIN).read_text() != origin:
        raise OutputError(f"{folder} was made from other files; remove it or choose another --out")
    return {split: folder / f"{split}.parquet" for split in paths}


def _with_times(path: Path) -> pl.LazyFrame:
    hour = pl.col("hour")
    day = hour.str.slice(0, 6).str.to_date("%y%m%d", strict=False).dt.weekday() % 7
    return pl.scan_csv(path, infer_schema=False).with_columns(
        pl.when(hour.str.contains(r"^\d{8}$")).then(hour.str.slice(6, 2).cast(pl.Int32, strict=False)).alias("hour"),
        day.cast(pl.Int32).alias("weekday"),
        day.is_in([0, 6]).cast(pl.Int32).alias("weekend"),
    )


def _check_times(source: Path, written: Path) -> None:
    bad = pl.scan_parquet(written).select(
        (pl.col("hour").is_null() | (pl.col("hour") > 23) | pl.col("weekday").is_null()).arg_true().first()
    )
    row = bad.collect().item()
    if row is not None:
        raise DataError(f"{source}, line {row + 2}, column 'hour': not of the form YYMMDDHH")
