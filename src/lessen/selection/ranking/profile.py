"""Instance profiling: what rows look like (holes, zeros, long fields, entropy of their characters), for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.selection.ranking.tally import NO_CLASS

LENGTHS = (30, 60, 100, 200, 300)
_ROWS = 10_000
_BINS = 20


def profile_rows(
    frame: pl.DataFrame, classes: NDArray[np.uint8], names: Sequence[str], missing: Sequence[str]
) -> dict[str, Any]:
    """Return histograms of row measures, over the first 10,000 sampled rows and for each class.

    Measures: share of fields missing, zero, longer than 30, 60, 100, 200, 300 characters; bits per byte of the row.
    """
    text = frame.head(_ROWS).select(pl.all().cast(pl.String))
    classes = classes[:_ROWS]
    measures: dict[str, NDArray[np.float64]] = {
        "missing": _share(text, pl.all().is_null() | pl.all().is_in(list(missing))),
        "zero": _share(text, pl.all().is_in(["0", "0.0"])),
    }
    for length in LENGTHS:
        measures[f"longer than {length}"] = _share(text, pl.all().str.len_chars() > length)
    measures["bits per byte"] = _character_entropy(text)
    result: dict[str, Any] = {}
    for measure, values in measures.items():
        edges = np.linspace(0.0, 8.0 if measure == "bits per byte" else 1.0, _BINS + 1)
        groups = {"all": np.ones(len(values), dtype=bool)}
        groups |= {names[code]: classes == code for code in np.unique(classes).tolist() if code != NO_CLASS}
        result[measure] = {
            "edges": edges.tolist(),
            "groups": {
                name: {"mean": float(values[rows].mean()), "rows": np.histogram(values[rows], edges)[0].tolist()}
                for name, rows in groups.items()
            },
        }
    return result


def _share(text: pl.DataFrame, test: pl.Expr) -> NDArray[np.float64]:
    return np.asarray(text.select(test.fill_null(False)).to_numpy().mean(axis=1))


def _character_entropy(text: pl.DataFrame) -> NDArray[np.float64]:
    joined = text.select(pl.concat_str(pl.all(), ignore_nulls=True).fill_null("").alias("row"))["row"].to_list()
    result = np.zeros(len(joined))
    for index, row in enumerate(joined):
        counts = np.bincount(np.frombuffer(row.encode(), dtype=np.uint8), minlength=256)
        share = counts[counts > 0] / max(len(row.encode()), 1)
        result[index] = -(share * np.log2(share)).sum() if len(share) else 0.0
    return result
