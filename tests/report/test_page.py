"""The page: self-contained, escaped, and drawn without a console error by a headless browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lessen import report
from lessen.errors import OutputError
from lessen.frontier import Frontier
from lessen.report.page import page, plot_data, script_json, unbroken
from study_folder import RECIPES, write_study

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("s") / "demo", examples=1200)


@pytest.fixture(scope="module")
def frontier(out):
    return report.write(out)


@pytest.fixture(scope="module")
def html(out, frontier):
    return (out / "frontier.html").read_text()


def test_write_makes_every_file_from_the_folder_alone(out, html):
    for name, start in {
        "csv": b"study,recipe",
        "png": b"\x89PNG",
        "svg": b"<?xml",
        "md": b"# ",
        "html": b"<!doctype",
    }.items():
        assert (out / f"frontier.{name}").read_bytes()[: len(start)].lower() == start.lower()
    assert html.rstrip().endswith("</html>")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    folder = write_study(tmp_path / "s", examples=200, recipes={"int8 rows": RECIPES["int8 rows"]})
    report.write(folder)
    before = {name: (folder / name).read_bytes() for name in report.FILES}
    report.write(folder)
    assert {name: (folder / name).read_bytes() for name in report.FILES} == before


def test_page_asks_for_nothing_outside_itself(html):
    elements = Elements(html).found
    assert not [tag for tag, _ in elements if tag in ("iframe", "object", "embed", "base")]
    for _, attributes in elements:
        for key in ("src", "href", "action", "srcset"):
            assert attributes.get(key, "data:").startswith("data:")
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
    assert "@import" not in html
    assert not re.search(r"url\(", html)


def test_policy_allows_one_style_and_one_script(html):
    policy = next(a["content"] for t, a in Elements(html).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2


def test_sections_come_in_the_order_a_reader_needs(html):
    marks = ['<h1>', 'id="trade"', 'id="plot"', 'id="ledger"', 'id="gaps"', 'id="noise"', 'id="baselines"',
             'id="environment"', 'id="recipes"', 'id="raw"']  # fmt: skip
    places = [html.index(mark) for mark in marks]
    assert places == sorted(places)


def test_raw_numbers_are_the_measurements(out, html):
    raw = re.search(r'<script type="application/json" id="raw">(.*?)</script>', html, re.S).group(1)
    lines = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    assert json.loads(raw) == lines


def hostile(folder):
    rows = {HOSTILE: RECIPES["int8 rows"], "$\\frac{1}{0}$ _x_": RECIPES["low-rank MLP"]}
    write_study(folder, examples=300, recipes=rows, study=HOSTILE.replace(":", ""))
    (folder / "study.yaml").write_text("margin: 0.2\n")
    (folder / "notes.json").write_text(json.dumps([HOSTILE]))
    (folder / "baselines.json").write_text(json.dumps({HOSTILE: {"auc": 0.5}}))
    return folder


def test_hostile_names_are_escaped_everywhere(tmp_path):
    frontier = report.write(hostile(tmp_path / "s"))
    text = (tmp_path / "s" / "frontier.html").read_text()
    elements = Elements(text).found
    assert len([tag for tag, _ in elements if tag == "script"]) == 3
    assert not [a for tag, a in elements if tag == "img" and a.get("src") == "x"]
    assert b"<script" not in (tmp_path / "s" / "frontier.svg").read_bytes()
    assert frontier[HOSTILE].label == HOSTILE


def test_json_in_the_page_cannot_end_its_element():
    text = script_json({"a": "</script><!--", "b": "\u2028&", "c": float("nan")})
    assert "<" not in text
    assert "&" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": "\u2028&", "c": None}


def test_page_of_failures_only_is_still_a_page(tmp_path):
    folder = write_study(tmp_path / "s", examples=200, recipes={"a": RECIPES["int8 rows"]}, fail="a")
    text = page(Frontier.load(folder))
    assert "Nothing was measured" in text
    assert "out of memory" in text


def test_numbers_stay_with_their_units():
    assert unbroken("21.2 % of (353 kB to 74.8 kB) [−0.1, +0.2] at 3 seeds") == (
        "21.2\u00a0% of (353\u00a0kB to 74.8\u00a0kB) [−0.1,\u00a0+0.2] at 3 seeds"
    )


def test_plot_data_hold_every_measured_point(frontier):
    data = plot_data(frontier)
    assert [point["label"] for point in data["points"]] == [point.label for point in frontier.measured]
    assert data["points"][0]["axes"]["stored_bytes"]["relative"]


def test_unwritable_place_is_one_line(frontier, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        report.write_frontier(frontier, blocked / "sub")


def test_report_of_two_studies_goes_where_it_is_told(tmp_path):
    one = {"int8 rows": RECIPES["int8 rows"]}
    first = write_study(tmp_path / "one", examples=200, recipes=one)
    second = write_study(tmp_path / "two", examples=200, recipes=one, study="second")
    joined = report.write(tmp_path / "joined", [first, second])
    assert [point.label for point in joined] == ["int8 rows (demo)", "int8 rows (second)"]
    assert "int8 rows (second)" in (tmp_path / "joined" / "frontier.html").read_text()
    assert not (first / "frontier.html").exists()


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
class TestInBrowser:
    @staticmethod
    def dom(path, tmp_path):
        done = subprocess.run(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                "--log-level=0",
                "--virtual-time-budget=2000",
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        return done.stdout

    def test_draws_every_point_and_the_same_front_as_python(self, out, frontier, tmp_path):
        found = [a for tag, a in Elements(self.dom(out / "frontier.html", tmp_path)).found if "data-label" in a]
        points = {a["data-label"]: a["class"] for a in found if a.get("class", "").startswith("point")}
        assert set(points) == {point.label for point in frontier.measured}
        drawn = {label for label, classes in points.items() if "on-front" in classes}
        assert drawn == {point.label for point in frontier.front()}

    def test_every_pair_of_axes_has_the_front_of_python(self, frontier, html, tmp_path):
        """The page finds the front by itself for each choice of axes: it must be the one that the API gives."""
        probe = """<pre id="probe"></pre><script>
        const fronts = {}, choose = (id, value) => {
          document.getElementById(id).value = value; document.getElementById(id).dispatchEvent(new Event("change")); };
        const metrics = document.getElementById("metric").options, costs = document.getElementById("cost").options;
        for (const m of metrics) for (const c of costs) {
          choose("metric", m.value); choose("cost", c.value);
          const marks = [...document.querySelectorAll(".on-front")];
          fronts[`${m.value} ${c.value}`] = marks.map((mark) => mark.dataset.label).sort(); }
        document.getElementById("probe").textContent = JSON.stringify(fronts);</script></body>"""
        free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", probe)
        (tmp_path / "probe.html").write_text(free)
        text = re.search(r'<pre id="probe">(.*?)</pre>', self.dom(tmp_path / "probe.html", tmp_path), re.S).group(1)
        fronts = json.loads(text)
        assert len(fronts) == 2 * 11
        for axes, labels in fronts.items():
            metric, cost = axes.split(" ")
            assert labels == sorted(point.label for point in frontier.front(cost, metric)), axes

    def test_hostile_names_do_not_run(self, tmp_path):
        report.write(hostile(tmp_path / "s"))
        text = self.dom(tmp_path / "s" / "frontier.html", tmp_path)
        assert "<title>owned" not in text
        assert text.count('class="point p-') == 2
