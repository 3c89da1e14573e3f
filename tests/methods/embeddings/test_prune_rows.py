from __future__ import annotations

import pytest
import torch

from lessen.errors import BudgetError
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.prune_rows import PruneRows
from lessen.methods.sites import Site
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding, Segment
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
@pytest.mark.parametrize("index", ["map", "sorted"])
def test_the_kept_rows_are_those_whose_loss_would_cost_most(task, fallback, index):
    model = task.reference(0)
    result, ledger = Recipe([PruneRows(keep=0.3, fallback=fallback, index=index)]).apply(model, task)
    dense, weight = result.items.dequantise(), model.items.weight.detach()
    counts = torch.bincount(task.items[:1024], minlength=1500).double()
    kept = (dense == weight).all(1)
    kept[0] = True
    assert int(kept.sum()) == 450
    row = dense[~kept][0]
    assert bool((dense[~kept] == row).all())
    centre = weight.mean(0) if fallback == "mean" else torch.zeros(12)
    score = counts * (weight - centre).square().sum(1).double()
    assert float(score[~kept].max()) <= float(score[1:][kept[1:]].min()) + 1e-6
    expected = weight[~kept].mean(0) if fallback == "mean" else torch.zeros(12)
    assert torch.allclose(row, expected, atol=1e-6)
    assert 0 < ledger[0].findings["tables"]["items"]["lookups_kept"] <= 1


def test_oov_fallback_is_the_first_row_of_the_field(task):
    model = task.reference(0)
    result, _ = Recipe([PruneRows(keep=0.3, fallback="oov")]).apply(model, task)
    dropped = result.tags.position >= 360
    assert torch.equal(result.tags.dequantise()[dropped][0], model.tags.weight.detach()[0])


def test_fields_with_many_lookups_do_not_drown_the_others():
    class Fields(TableTask):
        def build(self):
            model = super().build()
            table = FieldEmbedding([Segment("rare", 0, 600), Segment("often", 600, 900)], 12)
            model.items = table
            return model

    task = Fields()
    task.items = torch.where(torch.rand(len(task.items)) < 0.05, task.items % 600, 600 + task.items % 900)
    result, _ = Recipe([PruneRows(keep=0.1)]).apply(task.build(), task)
    kept = result.items.position < 150
    assert int(kept[:600].sum()) > 20
    assert int(kept[600:].sum()) > 20


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_a_share_of_the_bytes_is_met(task, share):
    result, ledger = Recipe([PruneRows(share=share)]).apply(task.reference(0), task)
    whole = (1500 + 1200) * 12 * 4
    assert table_bytes(result) == pytest.approx(share * whole, rel=0.02)
    assert ledger[0].findings["share"] == pytest.approx(share, rel=0.02)
    assert ledger[0].findings["tables"]["items"]["index"] == ("map" if share == 0.5 else "sorted")


def test_a_share_out_of_reach_names_the_nearest(task):
    with pytest.raises(BudgetError, match=r"emb-prune-rows cannot reach the share 0.001.*nearest it can reach is 0.00"):
        Recipe([PruneRows(share=0.001)]).apply(task.reference(0), task)
