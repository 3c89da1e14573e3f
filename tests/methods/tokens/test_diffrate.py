from __future__ import annotations

import pytest

from lessen.errors import InputError
from lessen.method import Context
from lessen.methods.tokens.common import look, share_of
from lessen.methods.tokens.diffrate import DiffRate, trim
from lessen.recipe import Recipe
from lessen.tokens import RankMerge


def test_the_search_meets_its_budget_and_leaves_the_weights(trained, task):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    method = DiffRate(macs=0.65, steps=40, learning_rate=0.1, first=1)
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
    _, (step,) = Recipe([DiffRate(macs=0.65, steps=2)]).apply(trained, task)
    assert step.findings["merged"][0] < 65
    with pytest.raises(InputError, match="leaves none to reduce"):
        Recipe([DiffRate(first=4)]).apply(trained, task)


def test_trimming_goes_down_to_the_budget_and_no_further(trained, task):
    scene = look(trained, task, Context())
    given = RankMerge(pruned=(65, 60, 50, 40), merged=(65, 55, 45, 35))
    share = share_of(scene, given) - 0.01
    trimmed = trim(scene, given, share)
    assert share - 0.03 < share_of(scene, trimmed) <= share
    assert trim(scene, given, 1.0) == given
