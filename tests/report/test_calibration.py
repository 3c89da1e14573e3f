"""The calibration section: right figures, only for click tasks, and drawn inside its frame."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lessen.frontier import Frontier
from lessen.report import calibration
from lessen.report.markdown import markdown
from lessen.report.page import page
from study_folder import RECIPES, prediction_path, write_study


@pytest.fixture
def folder(tmp_path):
    """A study of two recipes whose reference is calibrated and whose `int4 rows` predicts too much."""
    out = write_study(
        tmp_path / "s", examples=3000, seeds=1, recipes={k: RECIPES[k] for k in ("int8 rows", "int4 rows")}
    )
    generator = np.random.default_rng(0)
    chance = generator.uniform(0.05, 0.6, 3000)
    targets = (generator.random(3000) < chance).astype(np.float32)
    logits = np.log(chance / (1 - chance)).astype(np.float32)
    save_file({"targets": targets}, out / "predictions" / "targets.safetensors")
    for name, shift in (("reference", 0.0), ("int8 rows", 0.0), ("int4 rows", 1.0)):
        save_file({"scores": logits + np.float32(shift)}, prediction_path(out, name, 0))
    return out


def test_ratio_bins_and_interval_are_those_of_the_predictions(folder):
    found = {one.label: one for one in calibration.calibrations(Frontier.load(folder))}
    right, wrong = found["reference, uncompressed"], found["int4 rows"]
    targets = load_file(folder / "predictions" / "targets.safetensors")["targets"]
    scores = load_file(prediction_path(folder, "int4 rows", 0))["scores"]
    expected = (1 / (1 + np.exp(-scores.astype(float)))).sum() / targets.sum()
    assert wrong.ratio == pytest.approx(expected, rel=1e-6)
    assert wrong.low < wrong.ratio < wrong.high
    assert wrong.low > 1.1
    assert right.low < 1 < right.high
    assert right.covered >= 8 > 3 >= wrong.covered
    assert sum(part.examples for part in right.bins) == 3000


def test_page_and_markdown_show_it_and_the_curve_stays_in_its_frame(folder):
    frontier = Frontier.load(folder)
    html, text = page(frontier), markdown(frontier)
    assert '<h2 id="calibration">Calibration</h2>' in html
    assert "## Calibration" in text
    drawn = calibration.drawing(calibration.calibrations(frontier))
    assert len(drawn["curves"]) == 3
    for curve in drawn["curves"]:
        assert all(0 <= x <= drawn["width"] and 0 <= y <= drawn["height"] for x, y in curve["dots"])
        assert [x for x, _ in curve["dots"]] == sorted(x for x, _ in curve["dots"])


def test_other_tasks_have_no_such_section(folder):
    (folder / "predictions" / "targets.safetensors").unlink()
    assert "Calibration" not in page(Frontier.load(folder))
    save_file({"targets": np.arange(3000, dtype=np.float32)}, folder / "predictions" / "targets.safetensors")
    assert calibration.calibrations(Frontier.load(folder)) == []
