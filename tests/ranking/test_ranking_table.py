"""The tables of the guide are those of the committed results."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_guide_shows_the_committed_results(monkeypatch):
    script = ROOT / "benchmarks" / "ranking_table.py"
    results = [ROOT / "benchmarks" / "results" / f"ranking_{name}.json" for name in ("planted", "outrank", "memory")]
    if not script.exists() or not all(path.exists() for path in results):
        pytest.skip("benchmarks are not part of this installation")
    monkeypatch.syspath_prepend(script.parent)
    table = importlib.import_module("ranking_table")
    text = (ROOT / "docs" / "ranking.md").read_text()
    assert table.page(text) == text, "run: python benchmarks/ranking_table.py"
