"""The lookup table says what its cells say."""

from __future__ import annotations

import pytest

table = pytest.importorskip("benchmarks.embeddings.lookup_table", reason="benchmarks are not part of this installation")


def test_a_verdict_names_every_cell_that_misses():
    cells = [
        {"bar": 1.0, "work": "one", "threads": 1, "ratio": 0.9, "ratio_high": 1.1},
        {"bar": 1.0, "work": "bag20", "threads": 2, "ratio": 0.8, "ratio_high": 0.9},
    ]
    assert table.verdict(cells) == "1: met (interval reaches across: one, 1)"
    assert table.verdict([{**cell, "bar": None} for cell in cells]) == ""
    assert table.verdict([{**cell, "bar": 2.0} for cell in cells]) == "2: met"
    cells[1]["ratio"] = 1.2
    assert table.verdict(cells) == "1: missed (bag20, 2)"
