from __future__ import annotations

import pytest
import torch

from lessen.cli.profile import examine
from lessen.methods.embeddings.hash import HashTables
from lessen.recipe import Recipe, state_bytes
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions


@pytest.fixture(scope="module")
def known():
    task = SyntheticClicks(SyntheticOptions(rows=3000, fields=3, rows_per_field=300))
    task.settings = task.settings.__class__(epochs=1)
    torch.manual_seed(0)
    return task, task.build()


def test_rows_read_are_those_of_the_train_split(known):
    task, model = known
    tables = examine(model, task).tables
    ids = task.splits["train"].ids.long()
    assert [use.field for use in tables] == ["field0", "field1", "field2"]
    for number, use in enumerate(tables):
        counts = ids[:, number].bincount().sort(descending=True).values
        assert use.lookups == len(ids)
        assert use.rows_read == int((counts > 0).sum())
        assert use.head_share == pytest.approx(float(counts[:3].sum()) / len(ids))
        assert int(counts[: use.head_rows].sum()) >= 0.9 * len(ids) > int(counts[: use.head_rows - 1].sum())


def test_the_forecast_of_a_method_that_trains_is_what_it_leaves(known):
    task, model = known
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {one.method: one for one in examine(model, task).forecasts}
    small, _ = Recipe([HashTables()]).apply(model, task)
    assert found["emb-hash"].bytes == state_bytes(small)
    for name in ("emb-cafe", "emb-cel", "emb-weighted-hash", "emb-lsq", "emb-tt"):
        assert 0 < found[name].bytes < state_bytes(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
