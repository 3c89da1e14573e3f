"""The tables of the guide are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_guide_shows_the_committed_results():
    script = ROOT / "benchmarks" / "decoding_table.py"
    results = [ROOT / "benchmarks" / "results" / f"decoding_{name}.json" for name in ("copying", "batches")]
    if not script.exists() or not all(path.exists() for path in results):
        pytest.skip("benchmarks are not part of this installation")
    spec = importlib.util.spec_from_file_location("decoding_table", script)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = (ROOT / "docs" / "decoding.md").read_text()
    assert table.page(text) == text, "run: python benchmarks/decoding_table.py"
