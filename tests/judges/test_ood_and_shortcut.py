"""Scores of inputs from outside: closed forms, parity, thresholds; reliance on cues: closed forms and the real set-up."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.judges import planted
from lessen.errors import ConfigError
from lessen.judges import get_judge
from lessen.judges.ood import LearnedTemperature, abet, energy, msp, odin
from lessen.judges.suite import CannotAnswer
from lessen.tasks import get_task
from lessen.tasks.probes.cues import CuesOptions, CuesTask


def test_scores_have_their_closed_forms():
    g = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(64, 7, generator=g, dtype=torch.float64)
    heat = torch.rand(64, generator=g, dtype=torch.float64) + 1e-12
    cosines = torch.rand(64, 7, generator=g, dtype=torch.float64) * 2 - 1
    expected = torch.log(torch.exp(cosines / heat[:, None].clamp(min=0.002)).sum(dim=1))
    safe = heat > 0.002
    assert torch.allclose(abet(cosines, heat)[safe], expected[safe], atol=1e-9, rtol=0)
    assert torch.isfinite(abet(cosines, torch.full((64,), 1e-4, dtype=torch.float64))).all()  # 709 < c / T
    assert torch.allclose(energy(logits), torch.logsumexp(logits, dim=1), atol=1e-12)
    assert torch.allclose(msp(logits), torch.softmax(logits, dim=1).max(dim=1).values)
    # the temperature never changes the class, and the energy of the same head has T in front
    assert torch.equal((cosines / heat[:, None]).argmax(dim=1), cosines.argmax(dim=1))
    assert torch.allclose(heat * abet(cosines, heat), energy_of(cosines, heat), atol=1e-9)


def energy_of(cosines, heat):
    return torch.stack([energy(row[None], float(t))[0] for row, t in zip(cosines, heat, strict=True)])


@pytest.mark.skipif("PYTORCH_OOD" not in os.environ, reason="set PYTORCH_OOD to the unpacked package")
def test_scores_are_those_of_pytorch_ood(monkeypatch):
    for name in ("pytorch_ood", "pytorch_ood.detector"):  # without the data sets of their __init__
        package = types.ModuleType(name)
        package.__path__ = [str(Path(os.environ["PYTORCH_OOD"], *name.split(".")))]
        monkeypatch.setitem(sys.modules, name, package)
    from pytorch_ood.detector.energy import EnergyBased
    from pytorch_ood.detector.softmax import MaxSoftmax

    g = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(500, 9, generator=g, dtype=torch.float64)
    heat = torch.rand(500, generator=g, dtype=torch.float64)
    assert (energy(logits) + EnergyBased.score(logits)).abs().max() < 1e-9
    assert (msp(logits) + MaxSoftmax.score(logits)).abs().max() < 1e-9
    assert (abet(logits, heat) + EnergyBased.score(logits / heat[:, None])).abs().max() < 1e-9


def test_odin_moves_inputs_towards_the_answer_and_leaves_them_where_there_is_no_gradient():
    model = nn.Linear(4, 3)
    inputs = torch.randn(20, 4)
    moved = odin(model, inputs, 10.0, 0.05)
    still = (model(inputs) / 10.0).softmax(dim=1).amax(dim=1)
    assert (moved >= still - 1e-6).all()
    blind = odin(lambda value: model(value).detach(), inputs, 10.0, 0.05)
    assert torch.allclose(blind, still)


def test_the_learned_head_tells_classes_and_its_temperature_lies_between_0_and_1():
    task = planted.blobs(0)
    inputs, target = task.splits["train"]
    state = torch.get_rng_state()
    head = LearnedTemperature.fitted(inputs, target, 3, 150, 0)
    assert torch.equal(state, torch.get_rng_state())
    cosines, heat = head(task.splits["test"][0])
    assert (cosines.argmax(dim=1) == task.splits["test"][1]).float().mean() > 0.9
    assert 0 < heat.min() <= heat.max() <= 1


def test_other_tasks_and_dicts_of_inputs_are_outside_too():
    task = get_task({"name": "shapes", "examples": 160})
    model = task.build().eval()
    judge = get_judge(
        {"name": "ood", "outside": {"name": "shapes", "examples": 160, "style": "faded"}, "fit": 5}, task=task
    )
    outcomes = judge.outcomes(model)
    assert set(np.unique(outcomes["part"])) == {0, 1, 2}
    clicks = get_task({"name": "ctr-synthetic", "rows": 1500, "rows_per_field": 40})
    torch.manual_seed(0)
    judge = get_judge("ood", task=clicks)
    section = judge.compare(*(judge.outcomes(clicks.build().eval()) for _ in range(2)))
    assert set(section.figures) == {"msp", "energy", "odin"}
    assert "No AbeT" in section.lines[-1]


def test_texts_have_no_row_of_scores():
    with pytest.raises(CannotAnswer, match="one row of scores"):
        get_judge("ood", task=(task := get_task("language-tiny"))).outcomes(task.build().eval())
    clicks = get_task({"name": "ctr-synthetic", "rows": 1500})
    with pytest.raises(CannotAnswer, match="needs a classifier"):
        get_judge("shortcut", task=clicks).outcomes(clicks.build().eval())
    blobs = planted.blobs(0)
    with pytest.raises(CannotAnswer, match="needs pictures and classes"):
        get_judge("shortcut", task=blobs).outcomes(blobs.build().eval())


# -- cues ------------------------------------------------------------------------------------------------------------
def test_reliance_of_known_models():
    task = CuesTask(CuesOptions(inputs=20, hidden=0, examples=200))
    assert task.best() == pytest.approx(-0.68, abs=0.01)  # the sheet's value for 0.85, 0.9 and a correlation of 0.6
    assert CuesTask(CuesOptions(shortcut=0.9, inputs=5, examples=64)).best() == pytest.approx(0.0, abs=0.01)
    ways = np.linalg.pinv(task.embed(np.eye(2)).double().numpy())
    for direction, expected in (((1, 0), 1.0), ((0, 1), -1.0), ((0, 0), 0.0)):
        model = task.build().eval()
        with torch.no_grad():
            weight = torch.from_numpy(ways @ np.array(direction, dtype=float)).float()
            model[0].weight.copy_(torch.stack([-weight, weight]))
            model[0].bias.zero_()
        judge = get_judge("shortcut", task=task)
        section = judge.compare(*[judge.outcomes(model)] * 2)
        grid = section.figures["grid: shortcut against reliable cue"]
        assert grid["before"] == pytest.approx(expected, abs=0.01)
        assert not section.caught


def test_a_broken_model_is_not_read():
    task, best, _ = planted.known_cues(0)
    broken = planted.disturbed(best, 0.0)
    with torch.no_grad():
        broken[0].weight.zero_()
    judge = get_judge("shortcut", task=task)
    section = judge.compare(judge.outcomes(best), judge.outcomes(broken))
    assert not section.caught
    assert "near chance" in section.lines[-1]


def test_pictures_are_crossed_border_by_centre_and_detail_by_shape():
    task = get_task({"name": "shapes", "examples": 160})
    judge = get_judge({"name": "shortcut", "examples": 50}, task=task)
    model = task.build().eval()
    section = judge.compare(judge.outcomes(model), judge.outcomes(planted.disturbed(model, 1e-4)))
    assert {row[0] for row in section.tables[0].rows} == {
        "border against centre",
        "fine detail against coarse shapes",
    }
    assert not section.caught
    with pytest.raises(ConfigError, match="most"):
        get_judge({"name": "shortcut", "most": 0})


@pytest.mark.slow
def test_a_first_layer_of_rank_one_changes_the_cue():
    task = CuesTask()
    dense = task.reference(0)
    flat = planted.rank_of(dense, 1)
    judge = get_judge("shortcut", task=task)
    section = judge.compare(judge.outcomes(dense), judge.outcomes(flat))
    assert section.figures["accuracy"][0] - section.figures["accuracy"][1] < 0.03
    assert any("the cue switched" in each for each in section.caught)
