"""The rates of one codec are one line, and two codecs are compared by their BD-rate."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lessen.frontier import Frontier
from lessen.report.curves import curve_rows, curves
from lessen.report.markdown import markdown
from lessen.report.page import page, plot_data
from lessen.report.plot import draw

QUALITY = {0.2: 29.0, 0.4: 32.0, 0.8: 35.0, 1.6: 38.0}


def rated(name: str, rate: float, quality: float, curve: str | None) -> dict:
    return {
        "study": "s",
        "task": "t",
        "recipe": f"{name} {rate}",
        "recipe_hash": f"{name}{rate}",
        "seed": 0,
        "status": "ok",
        "quality": {"psnr": quality, "bits-per-pixel": rate},
        "cost": {"stored_bytes": 1000 * rate},
        "curve": curve,
        "reference": {"quality": {"psnr": 60.0, "bits-per-pixel": 24.0}, "cost": {"stored_bytes": 24000}},
    }


@pytest.fixture
def frontier() -> Frontier:
    rows = [rated("jpeg", rate, quality, "jpeg") for rate, quality in QUALITY.items()]
    rows += [rated("webp", 0.75 * rate, quality, "webp") for rate, quality in QUALITY.items()]
    return Frontier.from_records([*rows, rated("alone", 0.5, 30.0, None)])


def test_a_codec_that_takes_three_quarters_of_the_rate_saves_a_quarter(frontier):
    assert {name: len(points) for name, points in curves(frontier.measured).items()} == {"jpeg": 4, "webp": 4}
    (row,) = curve_rows(frontier)
    assert set(row[:2]) == {"jpeg", "webp"}
    assert row[2] in ("\N{MINUS SIGN}25.0 %", "+33.3 %")  # whichever is cheaper comes first


def test_page_and_markdown_show_it_and_the_plot_joins_each(frontier):
    assert "## Curves" in markdown(frontier)
    assert '<h2 id="curves">Curves</h2>' in page(frontier)
    assert {point["curve"] for point in plot_data(frontier)["points"]} == {"jpeg", "webp", None}
    figure = Figure()
    FigureCanvasAgg(figure)
    draw(figure, frontier)
    dashed = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4 and line.get_linestyle() == "--"]
    assert len(dashed) == 2
    assert all(list(line.get_xdata()) == sorted(line.get_xdata()) for line in dashed)


def test_one_curve_or_too_few_rates_say_so():
    one = Frontier.from_records([rated("jpeg", rate, quality, "jpeg") for rate, quality in QUALITY.items()])
    assert curve_rows(one) == []
    rows = [rated("jpeg", rate, quality, "jpeg") for rate, quality in QUALITY.items()]
    few = Frontier.from_records([*rows, rated("webp", 0.1, 30.0, "webp")])
    assert "three points" in curve_rows(few)[0][2]
