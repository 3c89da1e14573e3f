from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import BudgetError, InputError, NothingMatchedError
from lessen.measure.record import count_macs
from lessen.method import Context
from lessen.methods.tokens.tome import RandomMerge, ToMe
from lessen.recipe import Recipe
from lessen.tokens.stored import patch_of


def run(method, model, task):
    compact, (step,) = Recipe([method]).apply(model, task)
    return compact, step.findings


def test_nothing_merged_is_the_reference(trained, task):
    compact, findings = run(ToMe(r=0), trained, task)
    images = task.inputs(task.example_batch())
    with torch.no_grad():
        assert torch.equal(compact(images), trained(images))
    assert findings["macs_share"] == 1.0


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_a_budget_is_met_by_the_gentlest_schedule(share, trained, task):
    compact, findings = run(ToMe(macs=share), trained, task)
    assert share - 0.03 < findings["macs_share"] <= share
    measured = count_macs(task, compact) / count_macs(task, trained)
    assert measured == pytest.approx(findings["macs_share"], abs=0.02)  # the matching itself is counted too
    assert max(findings["removed"]) - min(findings["removed"]) <= 1


def test_similar_pairs_lose_less_than_random_ones(trained, task):
    similar = task.score(run(ToMe(macs=0.6), trained, task)[0], "test")
    chance = task.score(run(RandomMerge(macs=0.6), trained, task)[0], "test")
    assert similar > chance
    assert task.score(trained, "test") - similar < 0.2


def test_random_pairs_follow_the_seed(trained, task):
    images = task.inputs(task.example_batch())
    outputs = []
    for seed in (1, 1, 2):
        compact, _ = Recipe([RandomMerge(r=8)]).apply(trained, task, seed=seed)
        with torch.no_grad():
            outputs.append(compact(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_bad_requests(trained, task):
    with pytest.raises(BudgetError, match="the nearest it can is 0."):
        run(ToMe(macs=0.1), trained, task)
    with pytest.raises(InputError, match=r"cannot merge 40 of 65"):
        run(ToMe(r=40), trained, task)
    with pytest.raises(InputError, match="already patched"):
        Recipe([ToMe(r=4), ToMe(r=4)]).apply(trained, task)
    with pytest.raises(NothingMatchedError, match="no vision tower"):
        ToMe().apply(nn.Sequential(nn.Linear(2, 2)), task, Context())
    assert patch_of(trained) is None  # the caller's model is never patched


def test_fine_tuning_under_merging_helps(trained, task):
    frozen = task.score(run(ToMe(r=12), trained, task)[0], "test")
    tuned, findings = run(ToMe(r=12, fine_tune_epochs=2), trained, task)
    assert findings["trained"]["epochs"] == 2
    assert task.score(tuned, "test") > frozen
