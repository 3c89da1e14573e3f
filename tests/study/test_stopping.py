"""Early stops: seeds whose verdict is certain are left out, the report says so, and nothing else changes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from lessen import cli
from lessen.frontier import Frontier
from lessen.frontier.verdict import WITHIN
from lessen.recipe import Recipe
from lessen.study import MeasureOptions, Study, run
from lessen.study.parts import Parts
from lessen.tasks import get_task


@pytest.fixture(scope="module")
def study():
    """A model that is the same for every seed, so that two seeds tell all; one close recipe, one that breaks it."""
    task = get_task({"name": "ctr-synthetic", "rows": 2000, "rows_per_field": 40, "fields": 2, "strength": 3.0})
    model = task.reference(0)
    recipes = [
        Recipe.parse({"name": name, "steps": [{"emb-rowwise-quant": {"bits": bits, "min_rows": 1}}]})
        for name, bits in (("int8", 8), ("int2", 2))
    ]
    measure = MeasureOptions(rounds=8, batches=1, peak_memory=False, baselines=False)
    fixed = task.view(reference=lambda seed, log=None: copy.deepcopy(model))
    return Study("early", fixed, recipes, (0, 1, 2), 0.05, measure=measure, stop_when_certain=True)


def test_a_certain_verdict_leaves_seeds_out_and_the_report_says_so(study, tmp_path):
    result = run(study, tmp_path / "out")
    assert result.left == 0
    told = json.loads((tmp_path / "out" / "stopped.json").read_text())
    assert told["int8"] == {"seeds": [0, 1], "verdict": WITHIN}
    frontier = Frontier.load(tmp_path / "out", metrics=study.task.metrics)
    point = next(point for point in frontier if point.recipe == "int8")
    assert (len(point.seeds), point.verdict) == (2, WITHIN)
    assert any("int8 was not run on 1 of 3 seeds" in note for note in frontier.studies[0].notes)
    before = (tmp_path / "out" / "measurements.jsonl").read_bytes()
    assert run(study, tmp_path / "out", resume=True).left == 0
    assert (tmp_path / "out" / "measurements.jsonl").read_bytes() == before
    # without the rule the same folder goes on with what was left out
    whole = run(replace(study, stop_when_certain=False), tmp_path / "out", resume=True)
    assert len(whole.records) == 6


def test_the_key_and_the_option_set_it(study, tmp_path, monkeypatch):
    assert study.describe()["stop_when_certain"] is True
    assert "stop_when_certain" not in replace(study, stop_when_certain=False).describe()
    from lessen.cli import studies

    assert studies.stopping(replace(study, stop_when_certain=False)).stop_when_certain
    both = studies.stopping(Parts("both", [replace(study, stop_when_certain=False)]))
    assert both.studies[0].stop_when_certain
    text = "study: s\ntask: {name: ctr-synthetic}\nstop_when_certain: maybe\nrecipes: [{name: a, steps: [emb-half]}]\n"
    (tmp_path / "s.yaml").write_text(text)
    assert cli.execute(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
