"""Numeric transformations: which rounding, root, logarithm or binning of a number says most about the label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.selection.ranking.pairs import Pairs
from lessen.selection.ranking.rows import mix

Preset = Literal["none", "minimal", "default", "wide"]
Floats = NDArray[np.float64]
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "x": lambda x: x,
    "sqrt(x)": lambda x: np.sqrt(np.where(x >= 0, x, np.nan)),
    "log(1+x)": lambda x: np.log1p(np.where(x > -1, x, np.nan)),
}
_RESOLUTIONS = {"minimal": (1, 10), "default": (1, 10, 100), "wide": (1, 10, 50, 100)}
_QUANTILES = {"minimal": (16,), "default": (8, 32, 128), "wide": (4, 8, 16, 32, 64, 128, 256)}
_THRESHOLDS = (1, 2, 4, 8, 16, 32, 64, 96)
_MOST_SHARE, _MOST_UNDEFINED = 0.8, 0.75


@dataclass(frozen=True)
class Transformed:
    """One transformation of one numeric column, scored on the sample."""

    column: str
    formula: str
    score: float
    gain: float
    """Score minus the score of the column's values taken as they are."""
    cardinality: int


def rank_transforms(frame: pl.DataFrame, names: list[str], pairs: Pairs, preset: Preset) -> list[Transformed]:
    """Return the transformations of the numeric columns `names`, most gain first.

    One is dropped when a value covers 80% of rows or more, when 75% are undefined, or when it is constant.
    """
    result: list[Transformed] = []
    for name in names if preset != "none" else []:
        values = frame[name].cast(pl.Float64, strict=False).to_numpy()
        plain = pairs.score(pairs.hashes[name])
        for formula, numbers in transformed(values, preset):
            codes = np.where(np.isnan(numbers), -(2.0**62), numbers).astype(np.int64)
            counts = np.unique(codes, return_counts=True)[1]
            if counts.max() >= _MOST_SHARE * len(codes) or np.isnan(numbers).mean() >= _MOST_UNDEFINED:
                continue
            score = pairs.score(mix(codes.view(np.uint64)))
            result.append(Transformed(name, formula, score, score - plain, len(counts)))
    return sorted(result, key=lambda item: item.gain, reverse=True)


def transformed(values: Floats, preset: Preset) -> Iterator[tuple[str, Floats]]:
    """Yield (formula, whole numbers or NaN) for each transformation of the preset."""
    for text, function in _FUNCTIONS.items():
        with np.errstate(invalid="ignore"):
            moved = np.clip(function(values), -1e15, 1e15)
        for resolution in _RESOLUTIONS[preset]:
            yield f"round({text} * {resolution})", np.rint(moved * resolution)
    known = values[np.isfinite(values)]
    for bins in _QUANTILES[preset] if len(known) else ():
        edges = np.unique(np.quantile(known, np.arange(1, bins) / bins))
        cut = np.searchsorted(edges, values, side="right").astype(np.float64)
        yield f"quantile bin of {bins}", np.where(np.isnan(values), np.nan, cut)
    if preset == "wide":
        for threshold in _THRESHOLDS:
            low = np.where(values < threshold, np.rint(values), np.rint(np.log1p(np.maximum(values, 0)) * 10) + 1e6)
            yield f"x below {threshold}, else round(log(1+x) * 10)", low
