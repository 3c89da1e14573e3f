"""A study folder says what was changed in it, and what is missing from it."""

from __future__ import annotations

import json

import pytest

from lessen.errors import DataError
from lessen.frontier import Frontier
from lessen.frontier.seal import sealed
from study_folder import RECIPES, write_study


@pytest.mark.parametrize("name", ["noise.json", "baselines.json", "notes.json"])
def test_a_changed_file_beside_the_measurements_is_refused(tmp_path, name):
    folder = write_study(tmp_path / "s", examples=200, recipes={"a": RECIPES["int8 rows"]})
    value = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(sealed({"notes": value} if isinstance(value, list) else value)))
    whole = Frontier.load(folder).studies[0]
    assert "digest" not in whole.noise
    assert "digest" not in whole.baselines
    assert "Latency on CPU only; no GPU was used" in whole.notes
    raw = (folder / name).read_text()
    (folder / name).write_text(raw.replace("0.98", "0.88").replace("0.788", "0.888").replace("no GPU", "no CPU"))
    with pytest.raises(DataError, match=f"{name} was changed after it was written"):
        Frontier.load(folder)


def test_runs_that_the_study_names_and_the_folder_lacks_are_told(tmp_path):
    folder = write_study(tmp_path / "s", seeds=2, examples=200, recipes={"a": RECIPES["int8 rows"]})
    (folder / "study.yaml").write_text("margin: 0.004\nseeds: [0, 1]\nrecipes: [{name: a}]\n")
    assert not any("have no measurement" in note for note in Frontier.load(folder).studies[0].notes)
    lines = (folder / "measurements.jsonl").read_text().splitlines(keepends=True)
    (folder / "measurements.jsonl").write_text(lines[0])
    assert "1 of 2 runs of study.yaml have no measurement here: a seed 1" in Frontier.load(folder).studies[0].notes
