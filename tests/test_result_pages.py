"""The tables of the guides are those of the committed results: every script with a `page` makes its page anew."""

from __future__ import annotations

import re

import pytest

from benchmark_scripts import BENCHMARKS, load_script

SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "def page(" in path.read_text())


def test_the_scripts_are_found():
    if not BENCHMARKS.exists():
        pytest.skip("benchmarks are not part of this installation")
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_shows_the_committed_results(name, monkeypatch):
    script = load_script(name, monkeypatch)
    text = script.PAGE.read_text()
    named = re.search(r"<!-- \(?([\w|-]+)\)?:begin", script.MARKS.pattern)
    assert {found for found in named[1].split("|") if f"<!-- {found}:begin -->" not in text} == set()
    assert script.page(text) == text, f"run: python benchmarks/{name}.py"
