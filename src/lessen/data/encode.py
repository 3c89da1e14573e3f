"""From logs to a data set on disk: split, fit on train, encode in pieces, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessen.data.encoder import Fitter
from lessen.data.folder import VERSION, Dataset, SplitWriter, write_description
from lessen.data.logs import PIECE_BYTES, Piece, expand, read_pieces
from lessen.data.numbers import parse_numbers
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
) -> Dataset:
    """Encode logs into the folder `out` and open it; an existing folder is reused only if its sources are the same.

    Args:
        sources: files or globs, or `{"train": [...], "validation": [...], "test": [...]}` for given splits.
        piece_bytes: how much text is held at a time.

    Raises:
        DataError: a file is absent, empty, ragged, lacks a column or holds a bad value (file, line, column named).
        ConfigError: the rule does not fit the schema or the sources.
        OutputError: `out` holds something else, or cannot be written; nothing half-written is left.
    """
    check_schema(schema)
    given = sources if isinstance(sources, Mapping) else {"all": list(sources)}
    rule = _check_rule(rule or SplitRule(by="files" if isinstance(sources, Mapping) else "fraction"), given, schema)
    files = {name: expand(list(patterns)) for name, patterns in given.items()}
    fingerprint = _fingerprint(files, schema, rule)
    if (out / "dataset.json").exists():
        known = Dataset(out)
        if known.fingerprint != fingerprint:
            raise OutputError(f"{out} holds another data set (sources, schema or split differ); choose another --out")
        return known
    work = _Encoding(files, schema, rule, log, piece_bytes)
    with atomic_folder(out) as folder:
        encoder, rows = work.run(folder)
        write_description(folder, encoder, rows, fingerprint)
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


def _fingerprint(files: Mapping[str, list[Path]], schema: Schema, rule: SplitRule) -> str:
    """Digest what the result depends on: the bytes of the sources, the schema, the rule, the format's version."""
    parts = {name: [sha256(path) for path in paths] for name, paths in files.items()}
    identity = {"version": VERSION, "files": parts, "schema": schema.model_dump(mode="json"), "rule": vars(rule)}
    return hashlib.sha256(dump_json(identity).encode()).hexdigest()


class _Encoding:
    """Two passes over the sources: one fits on train rows, one writes all rows."""

    def __init__(
        self, files: Mapping[str, list[Path]], schema: Schema, rule: SplitRule, log: Log, piece_bytes: int
    ) -> None:
        self.files, self.schema, self.rule, self.log, self.piece_bytes = files, schema, rule, log, piece_bytes
        self.cuts = self._time_cuts() if rule.by == "time" else (0.0, 0.0)

    def run(self, folder: Path) -> tuple[Any, dict[str, int]]:
        """Write the splits into `folder`; returns the encoder and the rows of each split."""
        fitter = Fitter(self.schema)
        for piece, part in self._pieces("building vocabularies", ("train", "all")):
            fitter.add(piece, part == 0)
        encoder = fitter.finish()
        writers = [SplitWriter(folder / split, encoder) for split in SPLITS]
        for piece, part in self._pieces("encoding", tuple(self.files)):
            encoded = encoder.encode(piece)
            for number, writer in enumerate(writers):
                mask = part == number
                if mask.any():
                    writer.append(encoded, mask)
        rows = {split: writer.close() for split, writer in zip(SPLITS, writers, strict=True)}
        for split in SPLITS:
            if not rows[split]:
                self.log.note(f"the {split} split is empty")
        return encoder, rows

    def _pieces(self, what: str, groups: tuple[str, ...]) -> Iterator[tuple[Piece, NDArray[np.int64]]]:
        """Yield pieces with the split number of each row, files in the order given."""
        todo = [(group, path) for group in groups if group in self.files for path in self.files[group]]
        start = 0
        for done, (group, path) in enumerate(todo):
            for piece in read_pieces(path, self.schema, self.piece_bytes):
                yield piece, self._part(group, piece, start)
                start += len(piece.frame)
            self.log.progress(what, done + 1, len(todo))

    def _part(self, group: str, piece: Piece, start: int) -> NDArray[np.int64]:
        rows = len(piece.frame)
        if self.rule.by == "files":
            return np.full(rows, SPLITS.index(group))
        if self.rule.by == "time":
            place = parse_numbers(piece, self.schema.of_kind("timestamp")[0].name, None)
            return np.searchsorted(np.asarray(self.cuts), place, side="left")
        edges = np.cumsum(self.rule.fractions)[:2]
        return np.searchsorted(edges, _uniform(np.arange(start, start + rows), self.rule.seed), side="right")

    def _time_cuts(self) -> tuple[float, float]:
        """Return the newest timestamps of train and of validation."""
        name = self.schema.of_kind("timestamp")[0].name
        stamps = [parse_numbers(p, name, None) for path in self.files["all"] for p in read_pieces(path, self.schema)]
        if not stamps:
            raise DataError("no row to split by time")
        low, high = np.quantile(np.concatenate(stamps), np.cumsum(self.rule.fractions)[:2], method="inverted_cdf")
        return float(low), float(high)


def _uniform(rows: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row number, by the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
