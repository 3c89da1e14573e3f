"""The tables of the guide are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_guide_shows_the_committed_results():
    script, page = ROOT / "benchmarks" / "tokens_table.py", ROOT / "docs" / "tokens.md"
    if not script.exists() or not page.exists():
        pytest.skip("benchmarks and docs are not part of this installation")
    spec = importlib.util.spec_from_file_location("tokens_table", script)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = page.read_text()
    assert len(table.MARKS.findall(text)) >= 2
    assert table.page(text) == text, "run: python benchmarks/tokens_table.py"
