from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.bilevel import HeldOut
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.autodim import (
    LearnedWidthTables,
    WidthSearchTable,
    WidthSteps,
    likeliest,
    started,
    temperature,
)
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding, Segment
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask

SHAPE = TableShape(60, 8, padding_idx=0, segments=[("a", 1, 9), ("b", 10, 50)])


class Fields(TableTask):
    def build(self):
        model = super().build()
        table = FieldEmbedding([Segment("a", 1, 250), Segment("b", 251, 1239), Segment("c", 1490, 10)], 12)
        with torch.no_grad():
            table.weight[0] = 0.0
        model.items = table
        return model


def search(widths=(2, 4, 8)):
    weight = torch.randn(60, 8)
    tables = [started(SHAPE, [width] * 3, weight, torch.ones(60), 1.0, 0) for width in widths]
    return WidthSearchTable(SHAPE, tables, 0.5)


def test_shares_sum_to_one_and_noise_is_drawn_only_where_asked():
    form = search()
    with torch.no_grad():
        form.logits += torch.randn(3, 3)
    assert torch.allclose(form.shares(True).sum(dim=1), torch.ones(3))
    assert torch.allclose(form.shares(False), torch.softmax(form.logits, dim=1))
    assert not torch.equal(form.shares(True), form.shares(True))
    # Gumbel noise makes the largest share of a draw follow the softmax
    drawn = torch.stack([form.shares(True).argmax(dim=1) for _ in range(3000)])
    share = (drawn == 0).float().mean(dim=0)
    assert torch.allclose(share, form.shares(False)[:, 0].detach(), atol=0.05)


def test_a_forced_choice_gives_that_branch():
    form = search().eval()
    with torch.no_grad():
        form.logits[:, 1] = 1e4
    ids = torch.arange(1, 60)
    assert torch.allclose(form(ids), 0.5 * form.norms[1](form.tables[1](ids)), atol=1e-5)
    assert not bool(form(torch.tensor([0])).any())


def test_candidates_are_normalised_so_that_none_wins_by_scale():
    form = search((8,)).train()
    with torch.no_grad():
        form.tables[0].tables[0].weight.mul_(1000.0)
    rows = form(torch.arange(1, 60))
    assert torch.allclose(rows.std(dim=0, unbiased=False), torch.full((8,), 0.5), atol=1e-3)


def test_the_temperature_counts_examples():
    assert temperature(0) == 1.0
    assert temperature(2000 * 10) == temperature(200 * 100) == pytest.approx(0.9995)
    assert temperature(2000 * 19_800) == pytest.approx(0.01)
    assert temperature(10**12) == 0.01


def test_the_likeliest_widths_that_hit_the_target_are_found():
    draws = np.random.default_rng(1)
    sizes = np.array([[10], [100], [400]]) * np.arange(1, 9)
    for target in (1000, 1600, 2500, 4000):
        scores = draws.normal(size=(3, 8))
        found = likeliest(scores, sizes, target)
        value = {widths: sum(scores[f, w - 1] for f, w in enumerate(widths)) for widths in every()}
        size = {widths: sum(sizes[f, w - 1] for f, w in enumerate(widths)) for widths in every()}
        assert abs(size[tuple(found)] - target) <= 0.0155 * target
        near = [widths for widths in every() if abs(size[widths] - target) <= 0.0145 * target]
        assert value[tuple(found)] >= max(value[widths] for widths in near)


def every():
    return itertools.product(range(1, 9), repeat=3)


def test_a_target_out_of_reach_gives_the_nearest_widths():
    sizes = np.array([[100], [300]]) * np.arange(1, 4)
    none = np.zeros((2, 3))
    assert likeliest(none, sizes, 10) == [1, 1]
    assert likeliest(none, sizes, 10**6) == [3, 3]
    assert likeliest(none, sizes, 440) == [1, 1]
    assert likeliest(none, sizes, 560) == [3, 1]


@pytest.mark.parametrize(("share", "start"), [(0.5, "given"), (0.25, "fresh")])
def test_a_share_is_met_by_widths(share, start):
    task = Fields()
    model = task.reference(0)
    method = LearnedWidthTables(share=share, search_epochs=1, start=start, min_rows=5)
    result, ledger = Recipe([method]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert ledger[0].findings["tables"]["items"]["widths"] == result.items.widths
    assert not bool(result.items.dequantise()[0].any())
    assert_tables_learned(result, task)


@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_the_choice_moves_at_its_own_rate_and_the_weights_optimiser_leaves_it_alone(rate):
    task, shape = Fields(), TableShape(1500, 12, segments=[("a", 1, 250), ("b", 251, 1239), ("c", 1490, 10)])
    model = task.build()
    tables = [started(shape, [width] * 4, torch.randn(1500, 12), torch.ones(1500), 1.0, 0) for width in (2, 4, 12)]
    form = model.items = WidthSearchTable(shape, tables, 0.5)
    before, weight = form.logits.detach().clone(), model.first.weight.detach().clone()
    task.train(model, hooks=(WidthSteps(HeldOut(task, 4, 0), rate),))
    assert not torch.equal(model.first.weight, weight)
    assert torch.equal(form.logits, before) == (rate == 0.0)
