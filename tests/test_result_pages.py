"""The tables of the guides are those of the committed results: every script with a `page` makes its page anew."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "def page(" in path.read_text())


def test_the_scripts_are_found():
    if not BENCHMARKS.exists():
        pytest.skip("benchmarks are not part of this installation")
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_shows_the_committed_results(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location(f"page_{name}", BENCHMARKS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text()
    assert script.MARKS.search(text), f"{script.PAGE.name} has no place for a table of {name}.py"
    assert script.page(text) == text, f"run: python benchmarks/{name}.py"
