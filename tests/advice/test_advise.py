"""Advice: proposals that the task can follow, forecasts that hold, an order with reasons, budgets that nobody meets."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lessen import cli
from lessen.advice import advise
from lessen.advice.advise import forecast_seconds
from lessen.advice.rules import STAGES, proposals
from lessen.advice.situation import Situation, situation_of
from lessen.capabilities import NAMES
from lessen.errors import ArtifactError, ConfigError, InputError
from lessen.measure.machine import Grid, Machine
from lessen.measure.work import Operation, Work
from lessen.methods import get_method
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask

BASE = Situation(10**6, 0.5, 0.4, 0.1, 6, 10**6, 100.0, frozenset(NAMES), True)


@pytest.fixture(scope="module")
def known():
    task = TableTask()
    torch.manual_seed(0)
    return task, task.build().eval()


@pytest.mark.parametrize("gives", [frozenset(), {"calibration"}, {"labels", "gradients", "training", "calibration"}])
@pytest.mark.parametrize(("tables", "linears", "convolutions", "blocks"), [(0.9, 0.1, 0, 0), (0.1, 0.9, 0, 6),
                                                                            (0, 0.1, 0.9, 0), (0, 0, 0, 0)])  # fmt: skip
@pytest.mark.parametrize("reuse", [1.0, 500.0])
def test_no_rule_proposes_what_the_task_cannot_give(gives, tables, linears, convolutions, blocks, reuse):
    now = Situation(10**6, tables, linears, convolutions, blocks, 10**6, reuse, frozenset(gives), True)
    found = list(proposals(now))
    assert [one.stage for one in found] == sorted(one.stage for one in found)
    for one in found:
        recipe = Recipe.parse({"steps": list(one.steps)})
        needed = frozenset().union(*(step.card.needs for step in recipe.steps))
        assert needed <= now.gives, (one, needed)
        assert one.reason
    if not tables and not linears and not convolutions:
        assert not found


def test_quantisation_comes_last_and_nothing_is_rounded_twice():
    """Combination rules of the survey: cut, learn, then round."""
    rounding = {"rtn", "gptq", "linear-int8", "linear-half", "int8-static", "emb-rowwise-quant", "linear-mixed-bits"}
    now = dataclasses.replace(BASE, tables=0.4, blocks=0)
    for situation in (BASE, now):
        for one in proposals(situation):
            names = [next(iter(step)) for step in one.steps]
            first = next((at for at, name in enumerate(names) if name in rounding), len(names))
            assert all(name in rounding or get_method(name).card.family == "embeddings" for name in names[first:])
            assert len(set(names)) == len(names)


def test_what_is_bound_by_weights_is_told_few_bits_and_what_multiplies_int8():
    memory = dataclasses.replace(BASE, reuse=2.0)
    names = [[next(iter(step)) for step in one.steps] for one in proposals(memory)]
    assert ["linear-int8"] not in names
    assert ["linear-int8"] in [[next(iter(step)) for step in one.steps] for one in proposals(BASE)]


def test_lines_are_ordered_exact_and_within_the_budget(known, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path))  # a machine that was not measured
    task, model = known
    free = advise(model, task)
    assert free.untimed
    stages = [STAGES.index(line.stage) for line in free.lines if not line.unknown]
    assert stages == sorted(stages)
    names = [line.recipe.name for line in free.lines]
    assert len(set(names)) == len(names)
    assert all(line.cost["stored_bytes"] < free.before["stored_bytes"] for line in free.lines if line.cost)
    bound = advise(model, task, "stored_bytes<=0.3x, auc>=-0.01")
    assert {line.recipe.hash for line in bound.lines} < {line.recipe.hash for line in free.lines}
    for line in bound.lines:
        assert not line.cost or line.cost["stored_bytes"] <= 0.3 * bound.before["stored_bytes"]
    shares = [line.cost["stored_bytes"] for line in bound.over]
    assert shares == sorted(shares)
    assert min(shares) > 0.3 * bound.before["stored_bytes"]


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        ("rmse<=0.1", "no metric and no forecast of that name"),
        ("stored_bytes>=0.1x", "the most that you can pay"),
        ("stored_bytes=3", "is not understood"),
        ("auc>=0.99x", "a line on a metric is the difference to the reference"),
        ("stored_bytes<=.x", "is not understood"),
        ("latency_ratio<=0.5", "run `lessen doctor --measure` once"),
    ],
)
def test_a_budget_on_something_else_is_refused(known, budget, match, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path))
    task, model = known
    with pytest.raises(ConfigError, match=match):
        advise(model, task, budget)


def test_times_of_a_model_that_stays_are_its_own():
    machine = Machine({}, {"view": (1.0, 0.0, 0.0)})

    def calls(count):
        return Work({Operation("view"): count}, 0)

    assert forecast_seconds(machine, calls(2), calls(2), 3.0) == 3.0
    assert forecast_seconds(machine, calls(1), calls(2), 3.0) == 2.0  # what lies between operations stays
    assert forecast_seconds(machine, calls(1), calls(4), 2.0) == 0.5  # sums beyond the time are scaled to it


def test_a_model_that_the_task_cannot_call_is_one_line(known):
    task, _ = known
    with pytest.raises(InputError):
        advise(nn.Linear(3, 3), task)


def test_times_are_forecast_where_the_machine_was_measured(known):
    """Figures of a made-up machine: dense products take a second a multiply-add, int8 ones a quarter."""
    task, model = known
    axes = ((1, 512), (32, 2048), (32, 2048))
    size = np.log(np.prod(np.array(np.meshgrid(*axes, indexing="ij"), dtype=float), axis=0))
    grids = {"linear": Grid(axes, size, size), "int8-linear row": Grid(axes, size - np.log(4), size)}
    kinds = ("lookup", "function", "norm", "plain", "view")
    machine = Machine(grids, dict.fromkeys(kinds, (0.0, 0.0, 0.0)))
    found = advise(model, task, machine=machine)
    times = {line.recipe.name: line.cost.get("latency_ratio") for line in found.lines}
    assert times["linear-int8"] < 0.7  # the last of three layers is too small to be rounded
    assert times["rtn bits=4 activations=int8"] is None  # not among what was measured
    bound = advise(model, task, "latency_ratio<=0.7", machine=machine)
    assert "linear-int8" in {line.recipe.name for line in bound.lines}


def test_a_model_without_a_place_to_act_gets_no_line():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(50, 50))

        def forward(self, items, tags):
            return (items.float() * self.weight.sum()) + tags.sum(1)

    found = advise(Odd(), TableTask())
    assert not found.lines
    assert situation_of(Odd(), TableTask()).linears == 0


def run(capsys, *arguments):
    capsys.readouterr()
    status = cli.execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "advised_task.py"
    path.write_text("from lessen.testing.toys import TableTask\n\n\nclass Mine(TableTask):\n    name = 'mine'\n")
    return path


def test_every_line_is_a_command_that_runs_and_leaves_the_bytes_that_were_forecast(capsys, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, text, talk = run(capsys, "advise", "--task", f"{own}:Mine", "--budget", "auc>=-50%", "--json")
    assert status == 0
    assert "untrained model" in talk
    rows = json.loads(text)["try"]
    assert len(rows) > 5
    two_steps = next(row for row in rows if len(row["recipe"]["steps"]) == 2)
    words = shlex.split(two_steps["command"])
    assert words[:3] == ["lessen", "compress", "reference"]
    assert words[words.index("--margin") + 1] == "0.5"
    status, text, _ = run(capsys, *words[1:], "--json")
    assert status == 0
    assert json.loads(text)["stored_bytes"] == two_steps["cost"]["stored_bytes"]


def test_a_budget_that_nobody_meets_names_the_nearest(capsys, own):
    status, text, talk = run(capsys, "advise", "--task", f"{own}:Mine", "--budget", "stored_bytes<=0.001x")
    last = talk.strip().splitlines()[-1]
    assert status == 1
    assert "the nearest is" in last
    assert "misses stored_bytes<=0.001x" in last
    assert "bytes" in text


def test_a_form_that_no_artifact_can_hold_costs_its_own_line_only(known, monkeypatch):
    task, model = known
    room, kept = sys.modules["lessen.advice.advise"], {}
    kept["costs"] = room._costs

    def costs(compact, *rest):
        if compact is not model:
            raise ArtifactError("a: no artifact can describe it; leave it out")
        return kept["costs"](compact, *rest)

    monkeypatch.setattr(room, "_costs", costs)
    found = advise(model, task)
    assert found.lines
    assert {line.unknown for line in found.lines if not line.unknown.startswith("the training")} == {
        "a: no artifact can describe it"
    }
