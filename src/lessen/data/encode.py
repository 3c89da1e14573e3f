"""Logs become a data set on disk: split, fit on train, encoded in pieces, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessen.data.encoder import VERSION, Encoder, Fitter, checked
from lessen.data.folder import Dataset, SplitWriter, write_description
from lessen.data.numbers import parse_times, uniform, usable
from lessen.data.pieces import Absent, log_pieces
from lessen.data.readers import PIECE_BYTES, Faults, Piece, RowError, find_files
from lessen.data.schema import Schema, check_schema
from lessen.errors import ConfigError, DataError, OutputError
from lessen.files import atomic_folder, dump_json, sha256
from lessen.log import SILENT, Log

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitRule:
    """How rows become train, validation and test.

    files: the caller names files for each split. fraction: by a hash of the row number and the seed, the same
    whatever the piece size. time: the oldest rows train, the newest test; needs a timestamp field.
    """

    by: Literal["files", "fraction", "time"] = "fraction"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0


def encode_logs(
    sources: Mapping[str, list[str]] | list[str],
    schema: Schema,
    out: Path,
    rule: SplitRule | None = None,
    log: Log = SILENT,
    piece_bytes: int = PIECE_BYTES,
    skip_bad: int = 0,
) -> Dataset:
    """Encode logs into the folder `out` and open it; an existing folder is reused only if its sources are the same.

    Rows that cannot be read are gathered over a pass: the error names every kind of fault and counts its rows.

    Args:
        sources: files or globs, or `{"train": [...], "validation": [...], "test": [...]}` for given splits.
        piece_bytes: how much text is held at a time.
        skip_bad: bad rows that may be left out; what was left out is noted, and kept in the data set's description.

    Raises:
        DataError: a file is absent, empty, ragged, lacks a column or holds a bad value (file, line, column named).
        ConfigError: the rule does not fit the schema or the sources.
        OutputError: `out` holds something else, or cannot be written; nothing half-written is left.
    """
    check_schema(schema)
    given = sources if isinstance(sources, Mapping) else {"all": list(sources)}
    rule = _check_rule(rule or SplitRule(by="files" if isinstance(sources, Mapping) else "fraction"), given, schema)
    files = {name: find_files(patterns) for name, patterns in given.items()}
    fingerprint = _fingerprint(files, schema, rule)
    if (out / "dataset.json").exists():
        known = Dataset(out)
        if known.fingerprint not in (fingerprint, _fingerprint(files, schema, rule, known.encoder.version)):
            raise OutputError(f"{out} holds another data set (sources, schema or split differ); choose another --out")
        return known
    work = _Encoding(files, schema, rule, log, piece_bytes, skip_bad)
    with atomic_folder(out) as folder:
        encoder, rows = work.run(folder)
        write_description(folder, encoder, rows, fingerprint, work.faults.lines())
    return Dataset(out)


def _check_rule(rule: SplitRule, given: Mapping[str, Any], schema: Schema) -> SplitRule:
    if rule.by == "files" and set(given) != set(SPLITS):
        raise ConfigError(f"splits by files need files for {', '.join(SPLITS)}; given: {', '.join(given)}")
    if rule.by != "files" and set(given) != {"all"}:
        raise ConfigError(f"files are given for each split, so the rule cannot be {rule.by!r}")
    if rule.by == "time" and not schema.of_kind("timestamp"):
        raise ConfigError("a split by time needs a field of kind timestamp in the schema")
    if any(part < 0 for part in rule.fractions) or abs(sum(rule.fractions) - 1) > 1e-9 or rule.fractions[0] == 0:
        raise ConfigError(f"fractions {rule.fractions} must be positive and add up to 1")
    return rule


def _fingerprint(files: Mapping[str, list[Path]], schema: Schema, rule: SplitRule, version: int = VERSION) -> str:
    """Digest what the result depends on: the bytes of the sources, the schema, the rule, the format's version."""
    parts = {name: [sha256(path) for path in paths] for name, paths in files.items()}
    described = schema.model_dump(mode="json")
    if version == 1:  # knew fewer settings
        described = {key: described[key] for key in ("format", "separator", "header", "fields")}
        described["fields"] = [{k: v for k, v in field.items() if k != "spelling"} for field in described["fields"]]
    identity = {"version": version, "files": parts, "schema": described, "rule": vars(rule)}
    return hashlib.sha256(dump_json(identity).encode()).hexdigest()


class _Encoding:
    """Two passes over the sources: one fits on train rows, one writes all rows."""

    def __init__(
        self, files: Mapping[str, list[Path]], schema: Schema, rule: SplitRule, log: Log, piece_bytes: int, skip: int
    ) -> None:
        self.files, self.schema, self.rule, self.log, self.piece_bytes = files, schema, rule, log, piece_bytes
        self.skip, self.faults = skip, Faults(skip)
        self.cuts = self._time_cuts() if rule.by == "time" else (0.0, 0.0)

    def run(self, folder: Path) -> tuple[Encoder, dict[str, int]]:
        """Write the splits into `folder`; returns the encoder and the rows of each split."""
        fitter = Fitter(self.schema)
        self._pass("building vocabularies", ("train", "all"), lambda piece, part: fitter.add(piece, part == 0))
        encoder = fitter.finish()
        writers = [SplitWriter(folder / split, encoder) for split in SPLITS]

        def write(piece: Piece, part: NDArray[np.int64]) -> None:
            encoded = encoder.encode(piece)
            for number, writer in enumerate(writers):
                mask = part == number
                if mask.any():
                    writer.append(encoded, mask)

        self._pass("encoding", tuple(self.files), write)
        rows = {split: writer.close() for split, writer in zip(SPLITS, writers, strict=True)}
        for split in SPLITS:
            if not rows[split]:
                self.log.note(f"the {split} split is empty")
        for left_out in self.faults.lines():
            self.log.note(f"left out: {left_out}")
        return encoder, rows

    def _pass(self, what: str, groups: tuple[str, ...], use: Callable[[Piece, NDArray[np.int64]], None]) -> None:
        """Give every piece to `use` with the split number of each row, files in the order given.

        A piece that `use` refuses is given again without its bad rows. Nothing is used any more once more rows are bad
        than may be left out: the pass goes on to name what else is wrong, and ends in one error.
        """
        todo = [(group, path) for group in groups if group in self.files for path in self.files[group]]
        self.faults, absent, start = Faults(self.skip), Absent(), 0
        for done, (group, path) in enumerate(todo):
            log = self.log if groups[-1] in ("train", "all") or self.rule.by != "time" else SILENT
            for piece in log_pieces(path, self.schema, self.piece_bytes, self.faults, absent, log):
                rows = np.arange(start, start + len(piece.frame))
                start += len(piece.frame)
                self._give(piece, group, rows, use)
            self.log.progress(what, done + 1, len(todo))
        self.faults.check()
        absent.check(self.log)

    def _give(
        self, piece: Piece, group: str, rows: NDArray[np.int64], use: Callable[[Piece, NDArray[np.int64]], None]
    ) -> None:
        spoilt = self.faults.count > self.skip
        try:
            if not spoilt:
                use(piece, self._part(group, piece, rows))
                return
        except RowError:
            pass
        good = usable(piece, self.schema, self.faults)
        if not spoilt and self.faults.count <= self.skip and good.any():
            piece = piece.select(good)
            use(piece, self._part(group, piece, rows[good]))

    def _part(self, group: str, piece: Piece, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.rule.by == "files":
            return np.full(len(rows), SPLITS.index(group))
        if self.rule.by == "time":
            spec = self.schema.of_kind("timestamp")[0]
            return np.searchsorted(np.asarray(self.cuts), parse_times(piece, spec.name, spec.fill), side="left")
        return np.searchsorted(np.cumsum(self.rule.fractions)[:2], uniform(rows, self.rule.seed), side="right")

    def _time_cuts(self) -> tuple[float, float]:
        """Return the newest timestamps of train and of validation."""
        spec = self.schema.of_kind("timestamp")[0]
        stamps: list[NDArray[np.float64]] = []

        def take(piece: Piece, _: NDArray[np.int64]) -> None:
            checked(piece, self.schema)  # rows that will be left out have no say in where the cuts are
            stamps.append(parse_times(piece, spec.name, spec.fill))

        self.rule, rule = SplitRule(by="fraction"), self.rule  # no cuts are known yet
        self._pass("reading times", ("all",), take)
        self.rule = rule
        if not stamps:
            raise DataError("no row to split by time")
        low, high = np.quantile(np.concatenate(stamps), np.cumsum(self.rule.fractions)[:2], method="inverted_cdf")
        return float(low), float(high)
