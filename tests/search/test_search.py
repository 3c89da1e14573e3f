"""A whole search on a toy: files, the verdict on the test set, resuming, refusals, the command."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from lessen.cli import app
from lessen.errors import ConfigError, OutputError
from lessen.log import SILENT
from lessen.metrics import AUC
from lessen.search import Space, search
from lessen.search.file import load
from lessen.search.goal import Goal
from lessen.search.run import EVALUATIONS
from lessen.study import MeasureOptions, Study
from lessen.study.engine import ProcessEngine
from lessen.tasks import get_task
from toy import ToyTask

SPACE = [
    ["none", {"emb-rowwise-quant": {"bits": {"any": [8, 4, 2]}, "min_rows": 10}}],
    ["none", {"linear-int8": {"min_weights": 16}}, {"linear-int8": {"min_weights": 1000}}],
]
"""The last option finds nothing to act on: a search has to learn that."""
BUDGET = "stored_bytes<=0.6x, auc>=-0.05"


def study(seeds=(0, 1)):
    space = Space.parse(SPACE)
    quick = MeasureOptions(rounds=8, peak_memory=False, baselines=False)
    return Study("toy search", ToyTask(examples=4000), [space.recipe((1, 0))], seeds, measure=quick), space


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    asked, space = study()
    out = tmp_path_factory.mktemp("search") / "out"
    return out, search(asked, space, BUDGET, out, evaluations=5, batch=2)


def test_the_winner_holds_the_budget_on_the_test_set(found):
    _, result = found
    assert result.winner is not None
    point = result.final[result.winner]
    assert all(point.gates.values())
    assert point.seeds == (0, 1)
    assert (result.folder / "artifacts").is_dir()
    assert list(result.areas) == sorted(result.areas)


def test_every_evaluation_is_a_line_that_was_judged_on_validation_rows(found):
    out, result = found
    lines = [json.loads(line) for line in (out / EVALUATIONS / "measurements.jsonl").read_text().splitlines()]
    assert len(lines) == result.tried == 5
    assert len({line["recipe_hash"] for line in lines}) == 5
    good = [line for line in lines if line["status"] == "ok"]
    assert len(good) >= 3
    assert all("selection.auc" in line["quality"] and line["seed"] == 0 for line in good)
    assert any(line["quality"]["selection.auc"] != line["quality"]["auc"] for line in good)


def test_resuming_measures_nothing_twice(found):
    out, result = found
    asked, space = study()
    runs = sorted((out / EVALUATIONS / "runs").iterdir())
    good = [path for path in runs if json.loads(path.read_text())["status"] == "ok"]
    stamps = [path.stat().st_mtime_ns for path in good]
    with pytest.raises(OutputError, match="--resume"):
        search(asked, space, BUDGET, out, evaluations=5)
    again = search(asked, space, BUDGET, out, evaluations=5, resume=True)
    assert again.winner == result.winner
    assert [path.stat().st_mtime_ns for path in good] == stamps


def test_a_folder_of_another_space_is_refused(found):
    out, _ = found
    asked, _ = study()
    with pytest.raises(OutputError, match="another space"):
        search(asked, Space.parse(SPACE[:1]), BUDGET, out, resume=True)


def test_a_budget_nobody_can_meet_names_the_nearest(tmp_path):
    asked, space = study(seeds=(0,))
    result = search(asked, space, "stored_bytes<=0.01x, auc>=-0.05", tmp_path / "out", evaluations=2, batch=2)
    assert result.winner is None
    assert result.nearest in {point.recipe for point in result.final}
    assert "stored_bytes<=0.01x" in result.why


def test_files_without_a_space_and_bad_budgets_are_one_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"study": "s", "task": "ctr-movielens100k", "recipes": []}))
    with pytest.raises(ConfigError, match="needs the key `space`"):
        load(path, SILENT)
    answer = CliRunner().invoke(app, ["search", str(path)])
    assert isinstance(answer.exception, ConfigError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("auc>=0.99x", "a line on a metric is the difference to the reference"),
        ("stored_bytes<=0.5x, auc>=-3kB", "not one in 'kb'"),
        ("auc>=-1e999", "too large for a number"),
        ("stored_bytes<=1e999x", "too large for a number"),
    ],
)
def test_budgets_that_say_nothing_are_refused(budget, words):
    with pytest.raises(ConfigError, match=words):
        Goal.parse(budget, "stored_bytes", {"auc": AUC})


def test_of_two_lines_on_one_figure_the_tighter_is_sought():
    goal = Goal.parse(
        "stored_bytes<=0.1x, stored_bytes<=0.5x, auc>=-0.01, auc>=-1%, auc>=-0.002", "stored_bytes", {"auc": AUC}
    )
    assert (goal.most, goal.loss) == (0.1, 0.002)
    assert Goal.parse("auc>=-.002", "stored_bytes", {"auc": AUC}).loss == 0.002


KILLER = """
import os, signal
from lessen.method import Card, Method


class Kill(Method):
    card = Card(name="kill", family="weights", summary="Kill the process.", acts_on=("files",), source="this test")

    def apply(self, model, task, context):
        if context.form_only:
            return model
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_recipe_and_not_the_search(tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    space = Space.parse([["none", f"{tmp_path / 'killer.py'}:Kill", "linear-int8"]], own=True)
    quick = MeasureOptions(rounds=8, peak_memory=False, baselines=False)
    task = get_task({"name": "shapes", "examples": 200})
    asked = Study("dying", task, [space.recipe((2,))], (0,), measure=quick)
    out = tmp_path / "out"
    result = search(asked, space, "accuracy>=-0.9", out, evaluations=3, engine=lambda: ProcessEngine(2))
    assert "linear-int8" in result.winner
    lines = [json.loads(line) for line in (out / EVALUATIONS / "measurements.jsonl").read_text().splitlines()]
    dead = [line for line in lines if line["status"] != "ok"]
    assert len(dead) == 1
    assert "the worker process died" in dead[0]["error"]


def test_a_place_that_the_model_lacks_is_told_before_training(tmp_path):
    class Untrained(ToyTask):
        def reference(self, seed=0, log=None):
            raise AssertionError("the reference was trained first")

    task = Untrained()
    known = [name for name, _ in task.build().named_modules() if name]
    space = Space.parse([{"each": [f"{known[0]}x"], "of": ["none", "linear-int8"]}])
    study = Study("lost", task, [space.recipe((1,))], (0,))
    with pytest.raises(ConfigError, match=rf"{known[0]}x.*matches no module"):
        search(study, space, "stored_bytes<=0.5x", tmp_path / "out")
