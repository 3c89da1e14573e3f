"""Pages of the site at the width of a laptop and of a telephone: no table and no block of code is cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHEET = ROOT / "docs" / "stylesheets" / "wide.css"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = sorted((ROOT / "docs").glob("*.md"))
LAPTOP = 900
"""Pixels for the text between the menus of a window that is 1,400 wide."""
LETTER, PADDING = 6.6, 16
"""Pixels of a letter in a table, on average and in the theme's fonts, and of the space beside a cell's text."""


def rules(text: str) -> dict[str, dict[str, str]]:
    """Return declarations by selector; those of a media query under `@media ... selector`."""
    found: dict[str, dict[str, str]] = {}
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    for query, inner, selectors, body in re.findall(
        r"(@media[^{]*)\{((?:[^{}]*\{[^{}]*\})*)\s*\}|([^{}@]+)\{([^{}]*)\}", text
    ):
        if query:
            found |= {f"{query.strip()} {name}": value for name, value in rules(inner).items()}
        for selector in filter(None, map(str.strip, selectors.split(","))):
            pairs = [each.split(":", 1) for each in body.split(";") if ":" in each]
            found.setdefault(selector, {}).update({name.strip(): value.strip() for name, value in pairs})
    return found


def test_the_stylesheet_is_used_and_says_what_keeps_pages_whole():
    assert "extra_css: [stylesheets/wide.css]" in (ROOT / "mkdocs.yml").read_text()
    found = rules(SHEET.read_text())
    code = found[".md-typeset pre > code"]
    assert (code["white-space"], code["overflow-wrap"]) == ("pre-wrap", "anywhere")  # a long line wraps
    assert found[".md-typeset__scrollwrap"]["overflow-x"] == "auto"  # a wide table scrolls in its box
    assert float(found[".md-grid"]["max-width"].removesuffix("rem")) * 20 >= 1_400  # 20 pixels each in this theme
    wide = found["@media screen and (min-width: 60em) .md-typeset table:not([class]) th"]
    assert wide["min-width"] == "0"  # the theme gives each column 100 pixels, so that nine were cut off at 1,400


def tables(text: str):
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        yield [re.split(r"(?<!\\)\|", row.strip())[1:-1] for row in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_no_table_needs_more_than_a_laptop_has(page):
    """Each column needs the longest word that stands in it; blanks and hyphens are where a browser breaks a line."""
    for rows in tables(page.read_text()):
        need = 0.0
        for column in zip(*rows, strict=True):
            words = [word for cell in column for word in re.split(r"[\s-]+", re.sub(r"[*`]|\]\([^)]*\)", "", cell))]
            need += max(map(len, words)) * LETTER + PADDING
        assert need <= LAPTOP, (
            f"{page.name}: the table of {' | '.join(map(str.strip, rows[0]))} needs {need:.0f} pixels"
        )


def test_every_row_of_a_table_has_the_columns_of_its_head():
    for page in (ROOT / "README.md", *PAGES):
        for rows in tables(page.read_text()):
            assert len({len(row) for row in rows}) == 1, f"{page.name}: {rows[0]}"


PROBE = """<pre id="seen"></pre><script>
const pages = PAGES, found = [];
async function look(page, width) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; width: ${width}px; height: 700px`;
  await new Promise(done => { frame.onload = done; frame.src = page; document.body.append(frame); });
  await new Promise(done => setTimeout(done, 50));
  const root = frame.contentDocument.documentElement;
  const boxes = [...root.querySelectorAll(".md-typeset pre > code" + (width > 1000 ? ", .md-typeset__scrollwrap" : ""))];
  const cut = boxes.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.innerText.slice(0, 60));
  if (root.scrollWidth > root.clientWidth) cut.push(`the page: ${root.scrollWidth} of ${root.clientWidth}`);
  if (cut.length) found.push([page.split("/").slice(-2)[0], width, cut]);
  frame.remove();
}
(async () => {
  for (const page of pages) for (const width of [1400, 360]) await look(page, width);
  seen.textContent = JSON.stringify({looked: pages.length, found});
})();</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_shows_every_page_whole(tmp_path):
    pytest.importorskip("mkdocs", reason="the [docs] extra is not installed")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(build, cwd=ROOT, env=environment, check=True, timeout=400)
    pages = sorted(path.as_uri() for path in (tmp_path / "site").rglob("index.html"))
    (tmp_path / "probe.html").write_text(f"<body>{PROBE.replace('PAGES', json.dumps(pages), 1)}")
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,900",
            "--virtual-time-budget=120000", "--dump-dom", (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=400, check=True,
    )  # fmt: skip
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert seen["looked"] > 50
    assert seen["found"] == []
