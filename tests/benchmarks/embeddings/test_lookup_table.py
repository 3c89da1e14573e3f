"""The lookup table says what its cells say."""

from __future__ import annotations

import pytest

from benchmark_scripts import load_script


@pytest.fixture
def table(monkeypatch):
    return load_script("embeddings_lookup_table", monkeypatch)


def test_a_verdict_names_every_cell_that_misses(table):
    cells = [
        {"bar": 1.0, "work": "one", "threads": 1, "ratio": 0.9, "ratio_high": 1.1},
        {"bar": 1.0, "work": "bag20", "threads": 2, "ratio": 0.8, "ratio_high": 0.9},
    ]
    assert table.verdict(cells) == "1: met (interval reaches across: one, 1)"
    assert table.verdict([{**cell, "bar": None} for cell in cells]) == ""
    assert table.verdict([{**cell, "bar": 2.0} for cell in cells]) == "2: met"
    cells[1]["ratio"] = 1.2
    assert table.verdict(cells) == "1: missed (bag20, 2)"
