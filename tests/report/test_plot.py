"""The still pictures: valid, repeatable, and with labels that keep off each other."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from lessen.frontier import Frontier
from lessen.report import plot
from study_folder import write_study


@pytest.fixture(scope="module")
def frontier(tmp_path_factory) -> Frontier:
    return Frontier.load(write_study(tmp_path_factory.mktemp("s") / "demo", examples=1500))


def test_png_is_a_picture_of_1800_by_1080(frontier):
    raw = plot.picture(frontier, "png")
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")) == (1800, 1080)


def test_svg_parses_and_repeats(frontier):
    first = plot.picture(frontier, "svg")
    assert ET.fromstring(first).tag.endswith("svg")
    assert plot.picture(frontier, "svg") == first


def test_labels_do_not_cover_each_other(frontier):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), dpi=200)
    canvas = FigureCanvasAgg(figure)
    plot.draw(figure, frontier)
    canvas.draw()
    names = {point.label for point in frontier}
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in names]
    assert len(boxes) == 10
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


@pytest.mark.parametrize("cost", ["latency_ratio", "macs", "params", "train_s"])
def test_other_costs_can_be_drawn(frontier, cost):
    assert plot.picture(frontier, "png", cost)[:4] == b"\x89PNG"


def test_lower_is_better_turns_the_axis(frontier, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    monkeypatch.setattr(frontier, "primary", "logloss")
    figure = Figure()
    FigureCanvasAgg(figure)
    plot.draw(figure, frontier)
    low, high = figure.axes[0].get_ylim()
    assert low > high
