from __future__ import annotations

import pytest
import torch

from lessen.methods.calibration import count_ids
from lessen.methods.embeddings.prune_rows import PruneRows
from lessen.methods.sites import Site
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


@pytest.fixture
def task():
    return TableTask()


def test_counts_are_those_of_the_train_split(task):
    model = task.build()
    sites = [Site(("items",), model.items), Site(("tags",), model.tags)]
    items, tags = count_ids(model, task, sites)
    assert torch.equal(items, torch.bincount(task.items[:1024], minlength=1500))
    assert torch.equal(tags, torch.bincount(task.tags[:1024].reshape(-1), minlength=1200))
    assert not model.items._forward_pre_hooks


@pytest.mark.parametrize("fallback", ["mean", "zero"])
def test_the_kept_rows_are_those_whose_loss_would_cost_most(task, fallback):
    model = task.reference(0)
    result, ledger = Recipe([PruneRows(keep=0.3, fallback=fallback)]).apply(model, task)
    dense, weight = result.items.dequantise(), model.items.weight.detach()
    counts = torch.bincount(task.items[:1024], minlength=1500).double()
    kept = result.items.position < 450
    assert int(kept.sum()) == 450
    assert bool(kept[0]), "the padding row stays"
    assert torch.equal(dense[kept], weight[kept])
    row = dense[~kept][0]
    assert bool((dense[~kept] == row).all())
    if fallback == "zero":
        assert not bool(row.any())
        score = counts * weight.norm(dim=1).double()
        assert float(score[~kept].max()) <= float(score[1:][kept[1:]].min()) + 1e-9
    elif float(counts[~kept].sum()):
        expected = (counts[~kept] @ weight[~kept].double()) / counts[~kept].sum()
        assert torch.allclose(row.double(), expected, atol=1e-6)
    assert 0 < ledger[0].findings["tables"]["items"]["lookups_kept"] <= 1


def test_oov_fallback_is_the_first_row_of_the_field(task):
    model = task.reference(0)
    result, _ = Recipe([PruneRows(keep=0.3, fallback="oov")]).apply(model, task)
    dropped = result.tags.position >= 360
    assert torch.equal(result.tags.dequantise()[dropped][0], model.tags.weight.detach()[0])
