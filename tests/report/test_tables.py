"""CSV, Markdown twin, words and content. Golden files: regenerate with LESSEN_REGENERATE=1."""

from __future__ import annotations

import csv
import io
import itertools
import os
from pathlib import Path

import pytest

from lessen.frontier import Frontier
from lessen.report import content, wording
from lessen.report.markdown import markdown
from lessen.report.table import csv_text, rows
from study_folder import RECIPES, write_study

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def frontier(tmp_path_factory) -> Frontier:
    return Frontier.load(
        write_study(tmp_path_factory.mktemp("s") / "demo", examples=1500, margin=0.008, fail="hash 4x")
    )


@pytest.mark.parametrize(("name", "make"), [("frontier.csv", csv_text), ("frontier.md", markdown)])
def test_golden(frontier, name, make):
    text, path = make(frontier), GOLDEN / name
    if os.environ.get("LESSEN_REGENERATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if name.endswith(".csv"):
        _close(list(csv.DictReader(io.StringIO(text))), list(csv.DictReader(path.open())))
    else:
        assert text == path.read_text()


def _close(found, expected):
    """Compare rows: text exactly, figures to seven digits, so that another numpy's last digit does not matter."""
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert list(one) == list(two)
        for key in one:
            try:
                assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-6, abs=1e-9)
            except ValueError:
                assert one[key] == two[key]


def test_csv_has_one_row_a_recipe_and_failed_ones_say_so(frontier):
    table = list(csv.DictReader(io.StringIO(csv_text(frontier))))
    assert {row["recipe"] for row in table} == set(RECIPES)
    failed = [row for row in table if row["verdict"] == "failed"]
    assert [row["recipe"] for row in failed] == ["hash 4x"]
    assert failed[0]["stored_bytes"] == ""


def test_csv_share_is_bytes_over_reference(frontier):
    for row in rows(frontier):
        if row["stored_bytes"] is not None:
            assert row["stored_bytes_share"] == pytest.approx(row["stored_bytes"] / 352_640)


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "@x", "-2"])
def test_csv_never_starts_a_formula(tmp_path, name):
    frontier = Frontier.load(write_study(tmp_path / "s", examples=300, recipes={name: RECIPES["int8 rows"]}))
    row = next(csv.DictReader(io.StringIO(csv_text(frontier))))
    assert row["recipe"] == "'" + name


def test_markdown_keeps_hostile_names_inside_their_cell(tmp_path):
    name = "<script>alert(1)</script> | [x](http://e) `\n# head"
    frontier = Frontier.load(write_study(tmp_path / "s", examples=300, recipes={name: RECIPES["int8 rows"]}))
    prose = markdown(frontier).split("## Recipes")[0]
    assert "<script" not in prose
    assert "\n# head" not in prose
    for is_table, lines in itertools.groupby(prose.splitlines(), key=lambda line: line.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1 if is_table else True


def test_the_verdict_comes_first(frontier):
    lines = markdown(frontier).splitlines()
    assert lines[2] == f"**{wording.headline(frontier)}**"
    assert frontier.best().label in lines[2]


def test_gaps_name_failures_and_costs_not_measured(frontier):
    text = " ".join(content.gaps(frontier))
    assert "hash 4x failed (seeds 0, 1, 2): RuntimeError: out of memory at step 1" in text
    assert "unseen" in text


def test_nothing_worth_it_is_said(tmp_path):
    bad = {"hash 16x": RECIPES["hash 16x"]}
    folder = write_study(tmp_path / "s", examples=4000, recipes=bad)
    assert wording.headline(Frontier.load(folder)).startswith("Not worth it")


def test_too_little_data_is_said(tmp_path):
    folder = write_study(tmp_path / "s", examples=300, recipes={"int4 rows": RECIPES["int4 rows"]})
    assert wording.headline(Frontier.load(folder)).startswith("Not enough data to say")


def test_all_failed_is_said(tmp_path):
    folder = write_study(tmp_path / "s", examples=300, recipes={"a": RECIPES["int8 rows"]}, fail="a")
    frontier = Frontier.load(folder)
    assert wording.headline(frontier) == "Nothing was measured: every recipe failed."
    assert "out of memory" in markdown(frontier)
    assert csv_text(frontier).count("\n") == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("stored_bytes", 999, "999 B"),
        ("stored_bytes", 352_640, "353 kB"),
        ("stored_bytes", 1_240_000, "1.24 MB"),
        ("stored_bytes", 999_600, "1.00 MB"),
        ("latency_ms_p50", 1.4234, "1.42 ms"),
        ("macs", 61_000, "61.0 k"),
        ("params", 12, "12"),
        ("latency_ratio", 0.876, "0.88×"),
        ("stored_bytes", None, "–"),
        ("train_s", 0.0, "0 s"),
        ("compress_s", 0.0414, "41.4 ms"),
    ],
)
def test_amounts_have_units(name, value, text):
    assert wording.amount(name, value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "+0.0012"), (-0.00123, "−0.0012"), (-0.00001, "0.0000"), (None, "–")]
)
def test_signs_are_true_minus_and_zero_has_none(value, text):
    assert wording.signed(value, 4) == text


@pytest.mark.parametrize(("value", "text"), [(0.084, "8.4 %"), (1.0, "100 %"), (0.1234, "12.3 %"), (2.5, "250 %")])
def test_shares(value, text):
    assert wording.share(value) == text


def test_names_steer_no_terminal_and_carry_no_markup(tmp_path):
    hostile = "\x1b[2J<script>alert(1)</script>\r"
    frontier = Frontier.load(write_study(tmp_path / "s", examples=300, recipes={hostile: RECIPES["int8 rows"]}))
    for text in (markdown(frontier), csv_text(frontier)):
        assert "\x1b" not in text
        assert "\r" not in text
    assert "<script" not in markdown(frontier)
    from lessen.files import parse_yaml

    assert parse_yaml(content.recipes_yaml(frontier), "recipes")["recipes"][0]["name"] == hostile
