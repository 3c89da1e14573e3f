"""Pages on a telephone: a table scrolls inside its box, the page itself does not scroll sideways."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lessen import report
from lessen.frontier import Frontier
from lessen.report.joint import write_joint
from lessen.selection.ranking import RankSettings, rank
from lessen.selection.ranking.report import save
from study_folder import RECIPES, write_study

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONG = "a_name_without_a_space_" + 4 * "and_very_long_"
PROBE = """<iframe id="page" src="{page}" width="360" height="700" style="border: 0"></iframe><pre id="seen"></pre><script>
page.onload = () => setTimeout(() => {{
  const root = page.contentDocument.documentElement;
  seen.textContent = root.scrollWidth + " of " + root.clientWidth; }}, 500);</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study, a page of two parts, and a ranking; long names in each."""
    root = tmp_path_factory.mktemp("pages")
    folder = write_study(
        root / "study", examples=300, recipes={"int8 rows": RECIPES["int8 rows"], LONG: RECIPES["int4 rows"]}
    )
    report.write(folder)
    joint = write_joint("both", {"one": Frontier.load(folder), LONG: Frontier.load(folder)}, root / "joint")
    draw = np.random.default_rng(0)
    label = draw.integers(0, 2, 2_000)
    columns = {f"{LONG}{at}": np.where(draw.random(2_000) < 0.3, label, draw.integers(0, 3, 2_000)) for at in range(6)}
    pl.DataFrame({"label": label, **columns}).write_csv(root / "rows.csv")
    save(
        rank([root / "rows.csv"], RankSettings(crosses=0, select=0, transforms="none")),
        root / "ranking",
        [str(root / "rows.csv")],
    )
    return {"study": folder / "frontier.html", "joint": joint, "ranking": root / "ranking" / "ranking.html"}


class Tables(HTMLParser):
    """Counts the tables of a page, and those that stand in no box that scrolls."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.boxes: list[bool] = []
        self.all = self.bare = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self.boxes.append(bool({"scroll", "wide"} & set((dict(attrs).get("class") or "").split())))
        if tag == "table":
            self.all += 1
            self.bare += not any(self.boxes)

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self.boxes.pop()


@pytest.mark.parametrize("name", ["study", "joint", "ranking"])
def test_every_table_stands_in_a_box_that_scrolls(pages: dict[str, Path], name: str) -> None:
    found = Tables(pages[name].read_text())
    assert found.all > 0
    assert found.bare == 0


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
@pytest.mark.parametrize("name", ["study", "joint", "ranking"])
def test_the_page_is_no_wider_than_a_telephone(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    (tmp_path / "probe.html").write_text(PROBE.format(page=pages[name].as_uri()))
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900",
            "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    scroll, client = done.stdout.split('id="seen">')[1].split("</pre>")[0].split(" of ")
    assert 300 < int(client) <= 360
    assert int(scroll) <= int(client)
