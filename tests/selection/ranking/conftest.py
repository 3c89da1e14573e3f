"""Small tables with planted structure."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="session")
def planted():
    """20,000 rows: two signals, an XOR pair, a copy of the label, a duplicate, a key, a constant and noise."""
    rng = np.random.default_rng(7)
    rows = 20_000
    label = rng.integers(0, 2, rows)
    told = np.where(rng.random(rows) < 0.7, label, rng.integers(0, 2, rows))
    left = rng.integers(0, 4, rows)
    data = {
        "label": label,
        "strong": told * 5 + rng.integers(0, 5, rows),
        "leaking": label * 10,
        "left": left,
        "right": (left % 2 ^ label) + 2 * rng.integers(0, 3, rows),
        "key": np.arange(rows),
        "constant": np.ones(rows, dtype=int),
        "noise5": rng.integers(0, 5, rows),
        "noise2000": rng.integers(0, 2_000, rows),
        "noise20000": rng.integers(0, 20_000, rows),
    }
    data["again"] = data["noise5"]
    return pl.DataFrame({name: pl.Series(values.astype(str)) for name, values in data.items()})


@pytest.fixture
def table(tmp_path):
    """Write columns as CSV and return the path."""

    def write(data, name="data.csv"):
        path = tmp_path / name
        pl.DataFrame(data).write_csv(path)
        return path

    return write
