from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.mixed_dimension import MixedDimensionTables, power_law
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding, Segment
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


class Fields(TableTask):
    def build(self):
        model = super().build()
        table = FieldEmbedding([Segment("a", 1, 250), Segment("b", 251, 1239), Segment("c", 1490, 10)], 12)
        with torch.no_grad():
            table.weight[0] = 0.0
        model.items = table
        return model


def test_widths_fall_with_size_and_keep_the_order_of_fields():
    assert power_law([100, 6400, 200, 100], 16, 0.5, 100) == [16, 2, 11, 16]
    assert power_law([100, 6400], 16, 0.0, 100) == [16, 16]
    assert power_law([1, 10**9], 16, 1.0, 1) == [16, 1]
    shape = TableShape(1500, 12, segments=[("a", 1, 250), ("b", 251, 1239), ("c", 1490, 10)])
    assert MixedDimensionTables().widths(shape, 0.4) == [12, 11, 6, 12]


def test_at_full_width_the_given_rows_are_kept_and_narrow_ones_are_their_best_projection():
    task = Fields()
    task.settings = task.settings.__class__(epochs=1, learning_rate=1e-9)
    model = task.reference(0)
    result, _ = Recipe([MixedDimensionTables(alpha=0.4)]).apply(model, task)
    dense, weight = result.items.dequantise(), model.items.weight.detach()
    assert torch.allclose(dense[1490:], weight[1490:], atol=1e-5)
    error = (dense[251:1490] - weight[251:1490]).norm() / weight[251:1490].norm()
    assert 0 < float(error) < 0.8


@pytest.mark.parametrize("start", ["given", "fresh"])
def test_trained_model_is_smaller_and_learns(start):
    task = Fields()
    model = task.reference(0)
    result, ledger = Recipe([MixedDimensionTables(start=start, power_of_two=True)]).apply(model, task)
    assert ledger[0].findings["tables"]["items"]["widths"] == [12, 8, 8, 12]
    assert table_bytes(result) < 0.8 * table_bytes(model)
    assert_tables_learned(result, task)
    assert result.items.projections[0].requires_grad == (start == "given")


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_share_is_met_by_widths(share):
    task = Fields()
    model = task.reference(0)
    result, _ = Recipe([MixedDimensionTables(share=share, min_rows=5)]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
