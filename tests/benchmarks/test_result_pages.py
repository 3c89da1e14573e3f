"""The tables of the guides are those of the committed results: every script with a `GUIDE` makes its page anew."""

from __future__ import annotations

import re

import pytest

from benchmark_scripts import BENCHMARKS, load_script

SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*_table.py"))


def test_the_scripts_are_found():
    if not BENCHMARKS.exists():
        pytest.skip("benchmarks are not part of this installation")
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_shows_the_committed_results(name, monkeypatch):
    guide = load_script(name, monkeypatch).GUIDE
    text = guide.path.read_text()
    assert guide.renewed(text) == text, f"run: python benchmarks/{name}.py"


def test_every_marked_table_is_written_by_one_script(monkeypatch):
    guides = [load_script(name, monkeypatch).GUIDE for name in SCRIPTS]
    written = sorted((guide.path, name) for guide in guides for name in guide.tables)
    paths = {guide.path for guide in guides}
    marked = sorted((path, name) for path in paths for name in re.findall(r"<!-- ([\w-]+):begin -->", path.read_text()))
    assert written == marked


def test_a_page_without_a_place_for_a_table_is_refused(monkeypatch):
    guide = load_script("tokens_table", monkeypatch).Guide("tokens", {"speed": lambda: "new\n"})
    assert guide.renewed("<!-- speed:begin -->\nold\n<!-- speed:end -->") == (
        "<!-- speed:begin -->\nnew\n<!-- speed:end -->"
    )
    with pytest.raises(SystemExit, match="mark one place for the table 'speed'"):
        guide.renewed("# Tokens\n")
