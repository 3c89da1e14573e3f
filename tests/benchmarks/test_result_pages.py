"""The tables of the guides are those of the committed results: every script with a `GUIDE` makes its page anew."""

from __future__ import annotations

import importlib
import re

import pytest

guides = pytest.importorskip("benchmarks.guides", reason="benchmarks are not part of this installation")

SCRIPTS = sorted(
    f"benchmarks.{path.parent.name}.{path.stem}"
    for path in (guides.ROOT / "benchmarks").glob("*/*.py")
    if "GUIDE = " in path.read_text()
)


def guide_of(script):
    return importlib.import_module(script).GUIDE


def test_the_scripts_are_found():
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_guide_shows_the_committed_results(script):
    guide = guide_of(script)
    text = guide.path.read_text()
    assert guide.renewed(text) == text, f"run: python -m {script}"


def test_every_marked_table_is_written_by_one_script():
    pages = [guide_of(script) for script in SCRIPTS]
    written = sorted((page.path, name) for page in pages for name in page.tables)
    paths = {page.path for page in pages}
    marked = sorted((path, name) for path in paths for name in re.findall(r"<!-- ([\w-]+):begin -->", path.read_text()))
    assert written == marked


def test_a_page_without_a_place_for_a_table_is_refused():
    guide = guides.Guide("tokens", {"speed": lambda: "new\n"})
    assert guide.renewed("<!-- speed:begin -->\nold\n<!-- speed:end -->") == (
        "<!-- speed:begin -->\nnew\n<!-- speed:end -->"
    )
    with pytest.raises(SystemExit, match="mark one place for the table 'speed'"):
        guide.renewed("# Tokens\n")
