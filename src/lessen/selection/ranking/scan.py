"""The one pass: each chunk updates a tally and quality counters of every column, and offers its rows to the sample.

States of different files merge into the state of all, identical in any order, so files can be read by many workers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers import ReadSettings
from lessen.errors import DataError, MissingExtraError
from lessen.log import SILENT, Log
from lessen.selection.ranking.label import Label, edges_of
from lessen.selection.ranking.noise import controls
from lessen.selection.ranking.numbers import numbers_of
from lessen.selection.ranking.rows import Keys, RowSample, mix, row_keys
from lessen.selection.ranking.source import chunks, texts
from lessen.selection.ranking.tally import NO_CLASS, Tally

_NO_VALUE = pl.Series("absent", [None], dtype=pl.String)


@dataclass(frozen=True)
class ScanSettings:
    """What the pass keeps."""

    label: str | None = "label"
    label_edges: tuple[float, ...] | None = None
    missing: tuple[str, ...] = ("", "{}")
    values: int = 131_072
    """Distinct values counted exactly per column; beyond, a hash-chosen part stands for all."""
    sample: int = 65_536
    """Rows kept for crosses, redundancy, transformations and surrogates."""
    seed: int = 0
    read: ReadSettings = field(default_factory=ReadSettings)


@dataclass
class ColumnState:
    """Counters of one column over the rows seen."""

    tally: Tally
    missing: int = 0
    text_bytes: int = 0
    signature: int = 0
    """Order-free sum over rows of a hash of (row, value): equal columns have equal sums."""
    numbers: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0

    def add(
        self,
        column: pl.Series,
        length: int | None,
        numbers: NDArray[np.float64],
        keys: Keys,
        classes: NDArray[np.uint8],
        missing: Sequence[str],
    ) -> None:
        """Count the rows of `column`, strings of `length` bytes that hold these finite numbers."""
        self.add_hashes(column.hash(seed=0).to_numpy(), keys, classes)
        self.text_bytes += length or 0
        self.missing += int((column.is_null() | column.is_in(list(missing)).fill_null(False)).sum())
        if len(numbers):
            self.numbers += len(numbers)
            self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))
            self.total += float(numbers.sum())

    def add_hashes(self, hashes: Keys, keys: Keys, classes: NDArray[np.uint8]) -> None:
        """Count rows whose values are already hashed."""
        self.tally.add(hashes, classes)
        with np.errstate(over="ignore"):
            self.signature = (self.signature + int(mix(hashes ^ keys).sum())) % (1 << 64)

    def merge(self, other: ColumnState) -> None:
        """Add the counters of rows that `other` saw."""
        self.tally.merge(other.tally)
        self.missing += other.missing
        self.text_bytes += other.text_bytes
        self.signature = (self.signature + other.signature) % (1 << 64)
        self.numbers += other.numbers
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total


@dataclass
class ScanState:
    """All that one pass over some files keeps."""

    settings: ScanSettings
    label: Label
    sample: RowSample
    absent: ColumnState
    """What a column that is nowhere present would look like: the past of a column that appears late."""
    columns: dict[str, ColumnState] = field(default_factory=dict)
    controls: dict[str, ColumnState] = field(default_factory=dict)
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    rows: int = 0

    @classmethod
    def empty(cls, settings: ScanSettings) -> ScanState:
        """Return a state that has seen nothing."""
        label = Label(settings.label, settings.missing, settings.label_edges)
        return cls(settings, label, RowSample(settings.sample), ColumnState(Tally(settings.values)))

    def add(self, frame: pl.DataFrame, keys: Keys) -> None:
        """Count one chunk."""
        frame = texts(frame, "the data")
        lengths = frame.select(pl.all().str.len_bytes().sum()).row(0) if frame.width else ()
        read = [numbers_of(frame[name], int(size or 0)) for name, size in zip(frame.columns, lengths, strict=True)]
        frame = pl.DataFrame([column for column, _ in read])
        classes = self.label.codes(frame)
        self.classes += np.bincount(classes, minlength=256)
        nothing = np.full(len(keys), _NO_VALUE.hash(seed=0)[0], dtype=np.uint64)
        for name in frame.columns:
            if name not in self.columns:
                self.columns[name] = copy.deepcopy(self.absent)
        found = dict(zip(frame.columns, zip(lengths, (numbers for _, numbers in read), strict=True), strict=True))
        for name, state in self.columns.items():
            if name in found:
                state.add(frame[name], *found[name], keys, classes, self.settings.missing)
            else:
                state.add_hashes(nothing, keys, classes)
                state.missing += len(keys)
        self.absent.add_hashes(nothing, keys, classes)
        self.absent.missing += len(keys)
        if self.label.name is not None:
            self._add_controls(frame[self.label.name], keys, classes)
        self.sample.add(frame, keys, classes)
        self.rows += len(keys)

    def _add_controls(self, label: pl.Series, keys: Keys, classes: NDArray[np.uint8]) -> None:
        # codes depend on the order of appearance, the text does not: files must agree on the copy of the label
        target = (
            label.cast(pl.String).hash(seed=0).to_numpy()
            if self.label.edges is None
            else mix(classes.astype(np.uint64))
        )
        for name, hashes in controls(keys, target).items():
            state = self.controls.setdefault(name, ColumnState(Tally(self.settings.values)))
            state.add_hashes(hashes, keys, classes)

    def merge(self, other: ScanState) -> None:
        """Add what `other` saw of other files."""
        self.recode(sorted({*self.label.names, *other.label.names}))
        other.recode(self.label.names)
        for name in dict.fromkeys([*self.columns, *other.columns]):
            own = self.columns.setdefault(name, copy.deepcopy(self.absent))
            own.merge(other.columns.get(name) or other.absent)
        for name, state in other.controls.items():
            self.controls.setdefault(name, ColumnState(Tally(self.settings.values))).merge(state)
        self.absent.merge(other.absent)
        self.sample.merge(other.sample)
        self.classes += other.classes
        self.rows += other.rows

    def recode(self, names: list[str]) -> None:
        """Renumber the classes so that code i is `names[i]`."""
        if names == self.label.names:
            return
        mapping = np.full(256, NO_CLASS, dtype=np.uint8)
        for old, name in enumerate(self.label.names):
            mapping[old] = names.index(name)
        for state in [*self.columns.values(), self.absent, *self.controls.values()]:
            state.tally.recode(mapping)
        self.sample.recode(mapping)
        counts = np.zeros(256, dtype=np.int64)
        np.add.at(counts, mapping, self.classes)
        self.classes, self.label.names = counts, list(names)

    def close(self) -> None:
        """Sort the classes by name and refuse what cannot be ranked. Raises DataError."""
        self.recode(sorted(self.label.names))
        _check(self)


def scan_file(path: Path, number: int, settings: ScanSettings, log: Log = SILENT) -> ScanState:
    """Return the state after one pass over one file."""
    state = ScanState.empty(settings)
    for frame in chunks(path, settings.read, log):
        state.add(frame, row_keys(number, state.rows, frame.height, settings.seed))
    return state


def scan(
    files: Sequence[Path], settings: ScanSettings, engine: Literal["local", "ray"] = "local", log: Log = SILENT
) -> ScanState:
    """Read every file once and return the merged state; classes end up sorted by name.

    Raises:
        DataError: a file is damaged, the label is absent or constant, or only the label is there.
        MissingExtraError: `engine="ray"` without ray.
    """
    states = _on_ray(files, settings) if engine == "ray" else _here(files, settings, log)
    result: ScanState | None = None
    for done, state in enumerate(states, 1):
        if result is None:
            result = state
        else:
            result.merge(state)
        log.progress("files", done, len(files))
    if result is None:
        raise DataError("no files were given")
    result.close()
    return result


def _here(files: Sequence[Path], settings: ScanSettings, log: Log) -> Iterable[ScanState]:
    for number, path in enumerate(files):
        yield scan_file(path, number, settings, log)


def _on_ray(files: Sequence[Path], settings: ScanSettings) -> Iterable[ScanState]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "ray", "--engine ray") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    remote: Any = ray.remote(scan_file)
    for task in [remote.remote(path.resolve(), number, settings) for number, path in enumerate(files)]:
        try:
            yield copy.deepcopy(ray.get(task))  # arrays from another process are read-only
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, DataError) else error from error


def _check(state: ScanState) -> None:
    label = state.label.name
    if label is None:
        return
    if len(state.columns) < 2:
        raise DataError(f"the data has only the label {label!r}; there is nothing to rank")
    present = np.flatnonzero(state.classes[:NO_CLASS])
    if not len(present):
        raise DataError(f"the label {label!r} is missing in all {state.rows} rows; choose another with --label")
    if len(present) == 1:
        only = state.label.names[int(present[0])]
        raise DataError(f"the label {label!r} is always {only!r}; nothing can be ranked against a constant")


def label_edges(files: Sequence[Path], label: str, bins: int, settings: ScanSettings) -> tuple[float, ...]:
    """Return the inner edges that cut a numeric label into about `bins` classes, from an even sample of its rows.

    Raises:
        DataError: no such column, or it is not numeric.
    """
    sample = RowSample(settings.sample)
    for number, path in enumerate(files):
        start = 0
        for frame in chunks(path, settings.read):
            if label not in frame.columns:
                Label(label, settings.missing).codes(frame)  # raises with the nearest name
            keys = row_keys(number, start, frame.height, settings.seed)
            sample.add(texts(frame.select(label), str(path)), keys, np.full(frame.height, NO_CLASS, dtype=np.uint8))
            start += frame.height
    values = sample.rows()[0][label].cast(pl.Float64, strict=False).drop_nulls().to_numpy()
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError(f"the label {label!r} is not numeric; drop --label-bins to take its values as classes")
    return edges_of(values, bins)
