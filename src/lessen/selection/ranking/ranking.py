"""`rank`: from files to a ranking of columns and crosses, with the evidence for each decision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from lessen.data.readers import find_files
from lessen.errors import ConfigError
from lessen.log import SILENT, Log
from lessen.selection.ranking.columns import ColumnReport, NoiseFloor, chance_of, noise_floor, report_columns
from lessen.selection.ranking.pairs import Cross, Pairs, Redundancy, Tried, cross_hashes, select_3mr
from lessen.selection.ranking.profile import profile_rows
from lessen.selection.ranking.rows import row_keys
from lessen.selection.ranking.scan import ScanSettings, ScanState, label_edges, scan
from lessen.selection.ranking.source import CHUNK_ROWS
from lessen.selection.ranking.surrogate import Surrogate
from lessen.selection.ranking.tally import NO_CLASS
from lessen.selection.ranking.transforms import Preset, Transformed, rank_transforms

_TRIED = 30
"""Crosses whose gain is checked with the surrogate."""


@dataclass(frozen=True)
class RankSettings:
    """What `rank` computes; the defaults suit a hundred columns and any number of rows."""

    scan: ScanSettings = field(default_factory=ScanSettings)
    label_bins: int = 0
    """Cut a numeric label into this many classes of about equal size; 0 takes its values as classes."""
    crosses: int = 1_000
    """Pairs of columns scored as one on the whole sample: the best of up to 20,000 that a part of it screens."""
    redundancy: int = 40
    """The best so many columns are compared with each other, and offered to 3MR."""
    select: int = 10
    """Columns that 3MR and forward selection name."""
    known: tuple[str, ...] = ()
    """Columns a model already has: forward selection says what others add to them."""
    transforms: Preset = "default"
    rare: int = 1
    profile: bool = False
    engine: Literal["local", "ray"] = "local"


@dataclass(frozen=True)
class Ranking:
    """The result. `columns` holds the best first, the label itself on top."""

    files: tuple[str, ...]
    rows: int
    sampled: int
    label: str | None
    classes: dict[str, int]
    columns: list[ColumnReport]
    floor: NoiseFloor
    redundancy: list[Redundancy]
    crosses: list[Cross]
    tried: Tried
    cross_threshold: float
    """Standard deviations of synergy below which the best of so many null crosses may fall."""
    selected: list[tuple[str, float]]
    """3MR order with gains."""
    forward: list[tuple[str, float]]
    """Forward selection with the surrogate: drop in held-out log loss of each next column."""
    transforms: list[Transformed]
    profile: dict[str, Any]
    seconds: dict[str, float]
    settings: RankSettings

    def column(self, name: str) -> ColumnReport:
        """Return the report of one column. Raises ConfigError."""
        for row in self.columns:
            if row.name == name:
                return row
        raise ConfigError(f"the ranking has no column {name!r}")

    def dead(self, verdicts: Sequence[str] = ("missing", "constant", "duplicate", "noise")) -> list[str]:
        """Return columns to drop: those verdicts, but not a noise column that a recommended cross needs."""
        needed = {name for cross in self.useful_crosses() for name in (cross.first, cross.second)}
        return [
            c.name for c in self.columns if c.verdict in verdicts and not (c.verdict == "noise" and c.name in needed)
        ]

    def useful_crosses(self, count: int | None = None) -> list[Cross]:
        """Return crosses whose synergy is beyond chance and which help a surrogate that has both columns."""
        good = [c for c in self.crosses if c.synergy_z > self.cross_threshold and c.gain > 0]
        return sorted(good, key=lambda cross: cross.gain, reverse=True)[:count]


def rank(paths: Sequence[Path | str], settings: RankSettings | None = None, log: Log = SILENT) -> Ranking:
    """Rank the columns of CSV, Parquet, libsvm or Vowpal Wabbit files, read once.

    Raises:
        DataError: a file is absent, damaged or of unknown format; the label is absent, constant or of too many values.
    """
    settings = settings or RankSettings()
    files = find_files(paths)
    began = time.perf_counter()
    options = settings.scan
    if settings.label_bins and options.label is not None:
        options = replace(options, label_edges=label_edges(files, options.label, settings.label_bins, options))
    state = scan(files, options, settings.engine, log)
    return _rank(state, settings, tuple(path.name for path in files), began, log)


def rank_frame(frame: pl.DataFrame, settings: RankSettings | None = None, log: Log = SILENT) -> Ranking:
    """Rank the columns of a table in memory, as `rank` would a file of it. Raises DataError."""
    settings, began = settings or RankSettings(), time.perf_counter()
    state = ScanState.empty(settings.scan)
    for piece in frame.iter_slices(CHUNK_ROWS):
        state.add(piece, row_keys(0, state.rows, piece.height, settings.scan.seed))
    state.close()
    return _rank(state, settings, (), began, log)


def _rank(state: ScanState, settings: RankSettings, files: tuple[str, ...], began: float, log: Log) -> Ranking:
    read = time.perf_counter()
    chance = chance_of(state, settings.scan.seed)
    floor = noise_floor(state, chance)
    columns = report_columns(state, chance, floor, settings.rare, log)
    scored = time.perf_counter()
    found = _on_sample(state, columns, settings, log)
    counts = state.classes[:NO_CLASS]
    return Ranking(
        files=files,
        rows=state.rows,
        label=state.label.name,
        columns=columns,
        floor=floor,
        classes={name: int(counts[code]) for code, name in enumerate(state.label.names)},
        seconds={"read": read - began, "columns": scored - read, "sample": time.perf_counter() - scored},
        settings=settings,
        **found,
    )


def _on_sample(state: ScanState, columns: list[ColumnReport], settings: RankSettings, log: Log) -> dict[str, Any]:
    """Compute what needs rows, not counts: pairs, selection, transformations, profile."""
    frame, _, classes = state.sample.rows()
    here = set(frame.columns)
    frame = frame.select([name for name in state.columns if name in here])
    pairs = Pairs(frame, classes, settings.scan.seed)
    alive = [c for c in columns if c.verdict in ("useful", "noise", "unscored")]
    best = [c for c in alive if c.verdict != "noise"][: settings.redundancy]
    redundancy = pairs.redundancy([c.name for c in best], log)
    result: dict[str, Any] = {
        "sampled": len(frame),
        "redundancy": redundancy,
        "transforms": [],
        "crosses": [],
        "forward": [],
        "selected": [],
        "cross_threshold": 0.0,
        "tried": Tried(0, 0, 0),
    }
    if state.label.name is not None and len(pairs.class_counts) > 1:
        living = {c.name for c in alive}
        crosses, result["tried"] = pairs.crosses(
            [name for name in frame.columns if name in living], settings.crosses, settings.scan.seed, log
        )
        tail = torch.tensor(0.01 / max(result["tried"].screened, 1), dtype=torch.float64)
        result["cross_threshold"] = -float(torch.special.ndtri(tail))
        result["crosses"] = _tried(pairs, crosses, result["cross_threshold"])
        result["selected"] = select_3mr({c.name: c.best_score for c in best}, redundancy, crosses, settings.select)
        result["forward"] = _forward(pairs, [c.name for c in alive], settings, log)
        numeric = [c.name for c in columns if c.numeric_share > 0.5 and c.verdict in ("useful", "noise", "key")]
        result["transforms"] = rank_transforms(frame, numeric, pairs, settings.transforms)
    result["profile"] = (
        profile_rows(frame, classes, state.label.names, settings.scan.missing) if settings.profile else {}
    )
    return result


def _tried(pairs: Pairs, crosses: list[Cross], threshold: float) -> list[Cross]:
    """Fill in the held-out gain of the most promising crosses."""
    result = list(crosses)
    for index, cross in enumerate(crosses[:_TRIED]):
        if cross.synergy_z <= threshold:
            break
        hashes = {name: pairs.hashes[name][pairs.labelled] for name in (cross.first, cross.second)}
        hashes["cross"] = cross_hashes(hashes[cross.first], hashes[cross.second])
        surrogate = Surrogate(hashes, pairs.classes[pairs.labelled], list(hashes))
        base, losses = surrogate.losses([cross.first, cross.second], ["cross"])
        result[index] = replace(cross, gain=base - losses["cross"])
    return result


def _forward(pairs: Pairs, names: list[str], settings: RankSettings, log: Log) -> list[tuple[str, float]]:
    unknown = [name for name in settings.known if name not in pairs.names]
    if unknown:
        raise ConfigError(f"--known names {unknown[0]!r}, which is not a column of the data")
    used = list(dict.fromkeys([*names, *settings.known]))
    hashes = {name: pairs.hashes[name][pairs.labelled] for name in used}
    surrogate = Surrogate(hashes, pairs.classes[pairs.labelled], used)
    ranked = names[: settings.redundancy]
    return surrogate.forward_selection(ranked, min(settings.select, len(ranked)), settings.known, log)


def as_dict(ranking: Ranking) -> dict[str, Any]:
    """Return the whole ranking as JSON values."""
    return {
        "format": "lessen-ranking-1",
        "files": list(ranking.files), "rows": ranking.rows, "sampled_rows": ranking.sampled, "label": ranking.label,
        "classes": ranking.classes, "noise": vars(ranking.floor), "columns": [row.as_dict() for row in ranking.columns],
        "dead": ranking.dead(), "useful_crosses": [vars(cross) for cross in ranking.useful_crosses()],
        "crosses": [vars(cross) for cross in ranking.crosses], "cross_threshold_z": ranking.cross_threshold,
        "pairs": vars(ranking.tried),
        "redundancy": [vars(pair) for pair in ranking.redundancy], "selected_3mr": ranking.selected,
        "forward_selection": ranking.forward, "transforms": [vars(item) for item in ranking.transforms],
        "profile": ranking.profile, "seconds": {k: float(np.round(v, 3)) for k, v in ranking.seconds.items()},
    }  # fmt: skip
