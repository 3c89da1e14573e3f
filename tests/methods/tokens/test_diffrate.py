from __future__ import annotations

import pytest

from lessen.errors import InputError, TaskError
from lessen.method import Context
from lessen.methods.tokens._shared.common import share_of, survey_tower
from lessen.methods.tokens.diffrate import DiffRate, Judge, trim
from lessen.recipe import Recipe
from lessen.testing.colours import ColourTask
from lessen.tokens import RankMerge
from lessen.tokens.stored import patch_of


def test_the_search_meets_its_budget_and_leaves_the_weights(trained, task):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    method = DiffRate(macs=0.65, steps=40, learning_rate=0.1, first=1, matching="tail", polish=0)
    compact, (step,) = Recipe([method]).apply(trained, task)
    found = step.findings
    assert abs(found["searched_share"] - 0.65) < 0.05
    assert found["macs_share"] <= 0.65
    assert found["pruned"][0] == found["merged"][0] == 65
    assert all(m <= p for p, m in zip(found["pruned"], found["merged"], strict=True))
    assert all((before[name] == tensor).all() for name, tensor in compact.state_dict().items())
    assert all(p.requires_grad for p in compact.parameters())
    assert step.train_seconds > 0
    assert task.score(trained, "test") - task.score(compact, "test") < 0.25


def test_shallow_towers_are_reduced_from_the_first_block(trained, task):
    _, (step,) = Recipe([DiffRate(macs=0.65, steps=2, polish=0)]).apply(trained, task)
    assert step.findings["merged"][0] < 65
    with pytest.raises(InputError, match="leaves none to reduce"):
        Recipe([DiffRate(first=4)]).apply(trained, task)


def test_trimming_goes_down_to_the_budget_and_no_further(trained, task):
    survey = survey_tower(trained, task, Context())
    given = RankMerge(pruned=(65, 60, 50, 40), merged=(65, 55, 45, 35))
    share = share_of(survey, given) - 0.01
    trimmed = trim(survey, given, share)
    assert share - 0.03 < share_of(survey, trimmed) <= share
    assert trim(survey, given, 1.0) == given


def test_polishing_brings_the_outputs_nearer_within_the_budget(trained, task):
    survey = survey_tower(trained, task, Context())
    judge = Judge(survey, 2)
    distances = {}
    for trials in (0, 12):
        compact, (step,) = Recipe([DiffRate(macs=0.6, steps=3, polish=trials, polish_batches=2)]).apply(trained, task)
        found = patch_of(compact).reducer
        assert found.matching == "pairs"
        assert step.findings["macs_share"] <= 0.6
        distances[trials] = judge(found)
    assert distances[12] <= distances[0]
    history = step.findings["polish_divergence"]
    assert history[-1] == pytest.approx(distances[12], abs=1e-5)
    assert patch_of(trained) is None


class NoValidation(ColourTask):
    def batches(self, split, seed=0):
        return iter(()) if split == "validation" else super().batches(split, seed)


def test_polishing_needs_validation_pictures(trained):
    with pytest.raises(TaskError, match="empty validation split"):
        Recipe([DiffRate(macs=0.6, steps=1)]).apply(trained, NoValidation())
