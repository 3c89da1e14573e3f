from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.adapt import AdaptTables
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


def test_the_most_frequent_ids_get_rows_of_their_own():
    task = TableTask()
    result, _ = Recipe([AdaptTables(hot=0.1, rest=0.05)]).apply(task.reference(0), task)
    counts = torch.bincount(task.items[:1024], minlength=1500)
    hot = result.items.hot_ids.long()
    assert len(hot) == 150
    others = torch.ones(1500, dtype=torch.bool)
    others[hot] = False
    assert int(counts[hot].min()) >= int(counts[others].max())
    assert len(result.items.cold.table.weight) == 75
    assert_tables_learned(result, task)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_share_is_split_between_hot_and_hashed_rows(share):
    task = TableTask()
    model = task.reference(0)
    result, _ = Recipe([AdaptTables(share=share, hot_part=0.7)]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    hot = 52 * len(result.items.hot_ids) + 52 * len(result.tags.hot_ids)
    assert hot == pytest.approx(0.7 * table_bytes(result), rel=0.03)
